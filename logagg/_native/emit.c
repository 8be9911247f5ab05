/* The log call in C: from a logger's method to a line in the pipe.

   Theory of operation
   -------------------
   The Python code (`logagg.client.transport`, `logagg.client.handler`) is the reference:
   it owns all state and can do everything. This module does the ordinary call, and only
   that: it reads and writes the slots of the very objects that the Python code uses
   (`Transport`, `LineDelivery`, `ResendBuffer`), so that either may make any call, and
   neither has anything to report to the other. A call that is not plainly ordinary,
   whatever the reason, is left to Python before anything has been changed.

   Ordinary is: the transport is connected and not in use, its next check is not
   due, the second has not turned, nothing is queued, the process is not a forked child;
   the record is a plain one with a text message, without exception and stack, and its
   fields are of the types that `json.h` writes.

   Atomic by construction: between the first reading of the state and the return of `write`
   no Python code runs, the GIL is held, and no object is made that the garbage collector
   tracks (a collection runs destructors). The pipe does not block. So no other thread, no
   signal handler and no `__del__` can see the state half changed, and none can come
   between a stamp and its write. The transport's lock is taken before, without waiting,
   since a thread may hold it while it waits in Python code.

   A write that the pipe takes in part or not at all is Python's to finish: the line is in
   the resend buffer by then, as if Python had made it.

   Names of fields are classified by Python once and then found by hash (`json.h`).

   Free-threaded builds and subinterpreters are refused at import: the first have no GIL to
   lean on, the second would share what is static here. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef Py_GIL_DISABLED
#error "the GIL is what makes a call atomic"
#endif

#include "events.h"
#include "given.h"
#include "handler.h"
#include "json.h"
#include "line.h"
#include "logger.h"

/* ---- set-up: called once, by logagg.client.fast.native ----------------------------------- */

static int slot_offset(PyObject *type, const char *name, Py_ssize_t *offset)
{
    PyObject *found = PyObject_GetAttrString(type, name);
    if (found == NULL)
        return 0;
    int is_slot = Py_IS_TYPE(found, &PyMemberDescr_Type);
    if (is_slot)
        *offset = ((PyMemberDescrObject *)found)->d_member->offset;
    else
        PyErr_Format(PyExc_TypeError, "%s is no slot", name);
    Py_DECREF(found);
    return is_slot;
}

/* A value that `bind` was given; it stays alive with the dictionary, which is kept. */
static PyObject *given;

static PyObject *need(const char *name)
{
    PyObject *value = PyDict_GetItemString(given, name);
    if (value == NULL && !PyErr_Occurred())
        PyErr_Format(PyExc_KeyError, "%s", name);
    return value;
}

static int bind_lock(PyObject *acquire, PyObject *release)
{
    if (!Py_IS_TYPE(acquire, &PyMethodDescr_Type) || !Py_IS_TYPE(release, &PyMethodDescr_Type))
        return 0;
    PyMethodDef *takes = ((PyMethodDescrObject *)acquire)->d_method;
    PyMethodDef *frees = ((PyMethodDescrObject *)release)->d_method;
    lock_acquire = (PyCFunctionWithKeywords)(void (*)(void))takes->ml_meth;
    lock_release = frees->ml_meth;
    return takes->ml_flags == (METH_VARARGS | METH_KEYWORDS)
           && (frees->ml_flags == METH_NOARGS || frees->ml_flags == METH_VARARGS);
}

static int bind_attributes(PyObject *list)
{
    attribute_count = (int)PyTuple_GET_SIZE(list);
    for (int which = 0; which < A_COUNT; which++)
        attribute_place[which] = -1;
    if (attribute_count > MOST_ATTRIBUTES)
        return 0;
    for (int n = 0; n < attribute_count; n++) {
        attributes[n] = Py_NewRef(PyTuple_GET_ITEM(list, n));
        PyUnicode_InternInPlace(&attributes[n]);
        for (int which = 0; which < A_COUNT; which++)
            if (PyUnicode_CompareWithASCIIString(attributes[n], ATTRIBUTE_NAMES[which]) == 0)
                attribute_place[which] = n;
    }
    has_task_name = attribute_place[A_TASK_NAME] >= 0;
    for (int which = 0; which < A_TASK_NAME; which++)
        if (attribute_place[which] < 0)
            return 0;
    return attribute_count == 20 + has_task_name;
}

/* bind(parts: dict) -> bool: False where this Python's `logging` or locks are not as this
   module knows them. */
static PyObject *bind(PyObject *module, PyObject *parts)
{
    if (!PyDict_CheckExact(parts)) {
        PyErr_SetString(PyExc_TypeError, "a dictionary is needed");
        return NULL;
    }
    Py_XSETREF(given, Py_NewRef(parts));
#define NEED(place, name) if ((place = need(name)) == NULL) return NULL
#define NEED_TYPE(place, name) NEED(found, name); place = (PyTypeObject *)found
    PyObject *found, *acquire, *release, *pid_cell;
    NEED_TYPE(transport_type, "Transport");
    NEED_TYPE(delivery_type, "LineDelivery");
    NEED_TYPE(resend_type, "ResendBuffer");
    NEED_TYPE(record_type, "LogRecord");
    NEED_TYPE(lock_type, "RLock");
    NEED_TYPE(logger_type, "Logger");
    NEED_TYPE(root_type, "RootLogger");
    NEED(handler_emit, "emit");
    NEED(left_handle, "handle");
    NEED(level_names, "level_names");
    NEED(left_loggers, "left_loggers");
    NEED(modules, "modules");
    NEED(logging_globals, "logging");
    NEED(time_globals, "time");
    NEED(threading_globals, "threading");
    NEED(threads, "threads");
    NEED(real_time, "real_time");
    NEED(real_ident, "real_ident");
    NEED(thread_name_of, "thread_name");
    NEED(plain_factory, "LogRecord");
    NEED(number_to_name, "number_to_name");
    NEED(classify_name, "classify");
    NEED(paths, "paths");
    NEED(left_names, "names_of_path");
    NEED(left_factory, "make_record");
    NEED(record_template, "template");
    NEED(expected_methods, "expected_methods");
    NEED(running, "running");
    NEED(pid_cell, "pid_cell");
    NEED(acquire, "acquire");
    NEED(release, "release");
    NEED(found, "start_time");
    if (PyLong_Check(found))
        start_ns = PyLong_AsLongLong(found);
    else
        start_time = PyFloat_AsDouble(found);
    NEED(found, "returns_record");
    returns_record = found == Py_True;
    NEED(found, "left_methods");
    for (int n = 0; n <= LEVELS; n++)
        left_methods[n] = PyTuple_GET_ITEM(found, n);
    NEED(found, "attributes");
    if (PyErr_Occurred() || !bind_attributes(found) || !bind_lock(acquire, release)) {
        if (PyErr_Occurred())
            return NULL;
        Py_RETURN_FALSE;
    }
    struct {
        PyTypeObject *type;
        const char *name;
        Py_ssize_t *offset;
    } slots[] = {
        {transport_type, "_busy", &T.busy}, {transport_type, "delivery", &T.delivery},
        {transport_type, "earliest", &T.earliest}, {transport_type, "_has_more", &T.has_more},
        {transport_type, "last", &T.last}, {transport_type, "latest", &T.latest},
        {transport_type, "_level_parts", &T.level_parts}, {transport_type, "lock", &T.lock},
        {transport_type, "process_fields", &T.process_fields},
        {transport_type, "recent", &T.recent}, {transport_type, "_second_ns", &T.second_ns},
        {transport_type, "seq", &T.seq}, {transport_type, "_start", &T.start},
        {delivery_type, "fd", &D.fd}, {delivery_type, "next_check", &D.next_check},
        {delivery_type, "offset", &D.offset}, {delivery_type, "resend", &D.resend},
        {resend_type, "open_bytes", &R.open_bytes}, {resend_type, "open_lines", &R.open_lines},
    };
    for (size_t n = 0; n < sizeof slots / sizeof *slots; n++)
        if (!slot_offset((PyObject *)slots[n].type, slots[n].name, slots[n].offset))
            return NULL;
    if (PyMemoryView_Check(pid_cell)) {
        static Py_buffer view; /* for the life of the process */
        if (PyObject_GetBuffer(pid_cell, &view, PyBUF_SIMPLE) < 0)
            return NULL;
        pid_place = view.buf;
    }
    Py_RETURN_TRUE;
}

/* methods(type, kind) -> dict of native methods of a class, by name. */
static PyObject *methods(PyObject *module, PyObject *arguments)
{
    PyTypeObject *type;
    const char *kind;
    if (!PyArg_ParseTuple(arguments, "O!s", &PyType_Type, &type, &kind))
        return NULL;
    PyMethodDef single[] = {handle_method, {0}};
    PyMethodDef *defined = NULL;
    if (strcmp(kind, "logger") == 0)
        defined = logger_methods;
    else if (strcmp(kind, "event") == 0)
        defined = event_methods;
    PyObject *made = PyDict_New();
    for (PyMethodDef *method = defined != NULL ? defined : single;
         made != NULL && method->ml_name != NULL; method++) {
        PyObject *descriptor = PyDescr_NewMethod(
            type, defined != NULL ? method : &handle_method);
        if (descriptor == NULL
            || PyDict_SetItemString(made, method->ml_name, descriptor) < 0)
            Py_CLEAR(made);
        else if (defined == NULL)
            handler_handle = Py_NewRef(descriptor);
        Py_XDECREF(descriptor);
    }
    return made;
}

/* bind_events(Logger, last processor, count of processors): structlog's part. */
static PyObject *bind_events(PyObject *module, PyObject *arguments)
{
    if (!PyArg_ParseTuple(arguments, "O!On", &PyType_Type, &event_logger_type,
                          &last_processor, &processor_count))
        return NULL;
    Py_INCREF(event_logger_type);
    Py_INCREF(last_processor);
    PyObject *type = (PyObject *)event_logger_type;
    if (!slot_offset(type, "_attachment", &E.attachment)
        || !slot_offset(type, "_redact", &E.redact) || !slot_offset(type, "name", &E.name))
        return NULL;
    Py_RETURN_NONE;
}

/* use_factory(function): which other factory makes plain records. */
static PyObject *use_factory(PyObject *module, PyObject *factory)
{
    Py_XSETREF(own_factory, Py_NewRef(factory));
    Py_RETURN_NONE;
}

/* counts() -> (records sent by C code alone, records left to Python). */
static PyObject *counts(PyObject *module, PyObject *nothing)
{
    return Py_BuildValue("KK", sent_count, left_count);
}

/* encode(fields: dict, redact: bool) -> `"name":value,…` or None where Python must. */
static PyObject *encode(PyObject *module, PyObject *arguments)
{
    PyObject *fields;
    Limits limits = {0, MOST_VALUES};
    if (!PyArg_ParseTuple(arguments, "O!p", &PyDict_Type, &fields, &limits.redact))
        return NULL;
    if (limits.redact && may_name_a_secret(fields))
        Py_RETURN_NONE;
    for (int tries = 0; tries < 1000; tries++) {
        char *at = buffer;
        PyObject *name, *value;
        Py_ssize_t position = 0;
        refused = LEAVE;
        while (at != NULL && PyDict_Next(fields, &position, &name, &value))
            at = put_pair(at, name, value, 1, &limits);
        if (at != NULL)
            return PyBytes_FromStringAndSize(buffer + (at > buffer),
                                             at - buffer - (at > buffer));
        if (refused != UNKNOWN_NAME)
            break;
        PyObject *learned = Py_NewRef(unknown_name);
        int known = learn_name(learned);
        Py_DECREF(learned);
        if (!known)
            break;
    }
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"bind", bind, METH_O, NULL},
    {"bind_events", bind_events, METH_VARARGS, NULL},
    {"counts", counts, METH_NOARGS, NULL},
    {"encode", encode, METH_VARARGS, NULL},
    {"make_record", (PyCFunction)(void (*)(void))make_record,
     METH_FASTCALL | METH_KEYWORDS, "Make a record as logging.LogRecord(...) does."},
    {"methods", methods, METH_VARARGS, NULL},
    {"use_factory", use_factory, METH_O, NULL},
    {0}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "logagg._native.emit", "The log call in C.", -1, module_methods};

PyMODINIT_FUNC PyInit_emit(void)
{
    static const char *const LEVEL_WORDS[] = {"DEBUG", "INFO", "WARNING", "ERROR",
                                              "CRITICAL"};
    static const char *const LEFT_WORDS[] = {"_left_debug", "_left_info", "_left_warning",
                                             "_left_error", "_left_critical"};
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "not in a subinterpreter");
        return NULL;
    }
#define INTERN(word) \
    if ((w_##word = PyUnicode_InternFromString(#word)) == NULL) return NULL;
    WORDS(INTERN)
#define INTERN_AS(word, text) \
    if ((w_##word = PyUnicode_InternFromString(text)) == NULL) return NULL;
    word_name = PyUnicode_InternFromString("name");
    word_key = PyUnicode_InternFromString("key");
    word_value = PyUnicode_InternFromString("value");
    word_Value = PyUnicode_InternFromString("Value");
    INTERN_AS(contextvars, "structlog.contextvars")
    INTERN_AS(trace, "opentelemetry.trace")
    INTERN_AS(mp_process, "multiprocessing.process")
    INTERN_AS(main_process, "MainProcess")
    no_wait = Py_BuildValue("(O)", Py_False);
    no_arguments = PyTuple_New(0);
    for (int n = 0; n < LEVELS; n++) {
        level_words[n] = PyUnicode_InternFromString(LEVEL_WORDS[n]);
        left_words[n] = PyUnicode_InternFromString(LEFT_WORDS[n]);
        level_numbers[n] = PyLong_FromLong(10 * (n + 1));
    }
    return PyModule_Create(&definition);
}
