/* The objects that the Python code gives to `bind`, and how they are read.

   All state is Python's: the slots of `Transport`, `LineDelivery` and `ResendBuffer`, the
   dictionaries of handlers, loggers and modules. Nothing is copied here that can change
   without a trace. */

#ifndef LOGAGG_GIVEN_H
#define LOGAGG_GIVEN_H

#include <stddef.h>
#include <stdint.h>
#include <structmember.h>
#include <time.h>

#define SECOND 1000000000LL

enum { SENT, FINISHED, LEFT, FAILED }; /* FINISHED: sent, with Python's help */

static unsigned long long sent_count, left_count;

/* ---- what the Python code gave to `bind` ------------------------------------------- */

/* Offsets of the slots of a Python class. */
static struct {
    Py_ssize_t busy, delivery, earliest, has_more, last, latest, level_parts, lock,
        process_fields, recent, second_ns, seq, start;
} T;
static struct {
    Py_ssize_t fd, next_check, offset, resend;
} D;
static struct {
    Py_ssize_t open_bytes, open_lines;
} R;

static PyTypeObject *transport_type, *delivery_type, *resend_type, *record_type;
static PyTypeObject *lock_type, *logger_type, *root_type;
static PyCFunctionWithKeywords lock_acquire;
static PyCFunction lock_release;
static PyObject *no_wait, *no_arguments;

static PyObject *handler_emit, *handler_handle; /* the functions of Handler */
static PyObject *level_names;                   /* by a record's level name, the line's */
static PyObject *left_loggers;                  /* names whose records Python takes apart */
static PyObject *modules;                       /* sys.modules */
static PyObject *logging_globals, *time_globals, *threading_globals, *threads;
static PyObject *real_time, *real_ident, *thread_name_of, *own_factory, *plain_factory;
static PyObject *number_to_name; /* logging._levelToName */
static int has_task_name, returns_record;

#define MOST_ATTRIBUTES 40
static PyObject *attributes[MOST_ATTRIBUTES]; /* a LogRecord's own, in their order */
static int attribute_count;
enum {
    A_NAME, A_MSG, A_ARGS, A_LEVELNAME, A_EXC_INFO, A_EXC_TEXT, A_STACK_INFO, A_CREATED,
    A_THREAD, A_THREAD_NAME, A_PROCESS_NAME, A_PROCESS, A_TASK_NAME, A_COUNT
};
static const char *const ATTRIBUTE_NAMES[A_COUNT] = {
    "name", "msg", "args", "levelname", "exc_info", "exc_text", "stack_info", "created",
    "thread", "threadName", "processName", "process", "taskName",
};
static int attribute_place[A_COUNT];

#define WORDS(X) \
    X(_transport) \
    X(_asyncio) X(asyncio) X(_attachment) X(_bare) X(_cache) X(_context) \
    X(_CONTEXT_VARS) X(_contextual) X(_current_process) X(current_task) X(delivery) \
    X(__dict__) X(disabled) X(emit) X(exc_info) X(extra) X(filters) X(get_ident) \
    X(get_name) X(_get_running_loop) X(handle) X(handlers) X(level) \
    X(logAsyncioTasks) X(_logger) X(logMultiprocessing) X(logProcesses) \
    X(_logRecordFactory) X(logThreads) X(_name) X(name) X(notices) X(parent) \
    X(_processors) X(propagate) X(_redact) X(_srcfile) X(stack_info) X(stacklevel) \
    X(time) X(time_ns) X(write)
#define DECLARE(word) static PyObject *w_##word;
WORDS(DECLARE)
#undef DECLARE
static PyObject *w_contextvars, *w_trace, *w_mp_process, *w_main_process;

#define SLOT(object, offset) (*(PyObject **)((char *)(object) + (offset)))

/* ---- small parts -------------------------------------------------------------------- */

static inline int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * SECOND + now.tv_nsec;
}

/* A slot that holds an int of 64 bits. Returns whether it does. */
static inline int slot_number(PyObject *object, Py_ssize_t offset, int64_t *number)
{
    PyObject *value = SLOT(object, offset);
    int overflow;
    if (value == NULL || !PyLong_CheckExact(value))
        return 0;
    *number = PyLong_AsLongLongAndOverflow(value, &overflow);
    return !overflow;
}

/* Store a number that `made` holds already; what it replaces is an int, and runs no code
   when it goes. */
static inline void store(PyObject *object, Py_ssize_t offset, PyObject *made)
{
    PyObject *old = SLOT(object, offset);
    SLOT(object, offset) = made;
    Py_XDECREF(old);
}

/* A member of a dictionary, borrowed; NULL where there is none. Keys are interned. */
static inline PyObject *member(PyObject *dict, PyObject *key)
{
    PyObject *found = PyDict_GetItemWithError(dict, key);
    if (found == NULL && PyErr_Occurred())
        PyErr_Clear();
    return found;
}

/* An instance's dictionary, borrowed: the instance keeps it. */
static inline PyObject *dict_of(PyObject *object)
{
    PyObject *dict = PyObject_GenericGetDict(object, NULL);
    if (dict == NULL) {
        PyErr_Clear();
        return NULL;
    }
    Py_DECREF(dict);
    return dict;
}

/* ---- the cell that a fork clears ---------------------------------------------------- */

#define CELLS 4
static struct {
    PyObject *object; /* a memoryview of one double; held */
    Py_buffer view;
} cells[CELLS];
static int next_cell;

static const double *cell_of(PyObject *object)
{
    for (int n = 0; n < CELLS; n++)
        if (cells[n].object == object)
            return cells[n].view.buf;
    if (object == NULL || !PyMemoryView_Check(object))
        return NULL; /* a cell that compares pids: Python reads it */
    int place = next_cell;
    next_cell = (next_cell + 1) % CELLS;
    if (cells[place].object != NULL) {
        PyBuffer_Release(&cells[place].view);
        Py_CLEAR(cells[place].object);
    }
    if (PyObject_GetBuffer(object, &cells[place].view, PyBUF_SIMPLE) < 0) {
        PyErr_Clear();
        return NULL;
    }
    if (cells[place].view.len != sizeof(double)) {
        PyBuffer_Release(&cells[place].view);
        return NULL;
    }
    cells[place].object = Py_NewRef(object);
    return cells[place].view.buf;
}

#endif
