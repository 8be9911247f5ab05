/* The end of structlog's chain: the methods of a bound logger of `logagg.structlog`. */

#ifndef LOGAGG_EVENTS_H
#define LOGAGG_EVENTS_H

#include "logger.h"

/* ---- structlog ---------------------------------------------------------------------- */

static PyTypeObject *event_logger_type; /* logagg.structlog.Logger */
static struct {
    Py_ssize_t attachment, redact, name;
} E;
static PyObject *last_processor, *running; /* fields of what runs now: a list */
static Py_ssize_t processor_count;
static PyObject *left_words[LEVELS]; /* the attributes that hold the Python methods */
static PyObject *level_words[LEVELS]; /* upper case, as a record's */

static int event_call(PyObject *self, int which, PyObject *const *values, Py_ssize_t count,
                      PyObject *names)
{
    int structured, result = LEFT;
    PyObject *own = dict_of(self);
    if (own == NULL || count != 1 || !PyUnicode_CheckExact(values[0])
        || PyList_GET_SIZE(running) > 0 || !surroundings_are_plain(&structured))
        return LEFT;
    PyObject *logger = member(own, w__logger), *processors = member(own, w__processors);
    PyObject *context = member(own, w__context);
    if (logger == NULL || processors == NULL || context == NULL
        || Py_TYPE(logger) != event_logger_type || !PyList_CheckExact(processors)
        || PyList_GET_SIZE(processors) != processor_count
        || PyList_GET_ITEM(processors, processor_count - 1) != last_processor
        || !PyDict_CheckExact(context))
        return LEFT;
    if (names != NULL && PyDict_GET_SIZE(context) > 0)
        for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(names); n++)
            if (PyDict_Contains(context, PyTuple_GET_ITEM(names, n)) != 0)
                return LEFT;
    PyObject *redacts = SLOT(logger, E.redact);
    Fields fields = {.level = level_words[which], .logger = SLOT(logger, E.name),
                     .message = values[0], .values = values + 1, .value_names = names,
                     .redact = redacts == Py_True};
    if (fields.logger == NULL)
        return LEFT;
    if (PyDict_GET_SIZE(context) > 0)
        fields.fields = context;
    PyObject *transport = Py_XNewRef(SLOT(logger, E.attachment));
    Py_INCREF(fields.logger);
    fields.pid = own_pid();
    fields.thread = own_thread();
    fields.process = own_process();
    if (fields.pid != NULL && fields.thread != NULL && fields.process != NULL)
        result = send_record(transport, &fields);
    Py_XDECREF(transport);
    Py_DECREF(fields.logger);
    Py_XDECREF(fields.pid);
    Py_XDECREF(fields.thread);
    Py_XDECREF(fields.process);
    return result;
}

static PyObject *event_method(PyObject *self, PyObject *const *values, Py_ssize_t count,
                              PyObject *names, int which)
{
    int result = event_call(self, which, values, count, names);
    if (result == SENT)
        Py_RETURN_NONE;
    if (result == FAILED)
        return NULL;
    PyErr_Clear();
    PyObject *function = PyObject_GetAttr((PyObject *)Py_TYPE(self), left_words[which]);
    if (function == NULL)
        return NULL;
    PyObject *done = call_left(function, self, values, count, names);
    Py_DECREF(function);
    return done;
}

#define DEFINE_EVENT(name, which) \
    static PyObject *event_##name(PyObject *self, PyObject *const *values, \
                                  Py_ssize_t count, PyObject *names) \
    { return event_method(self, values, count, names, which); }
METHODS(DEFINE_EVENT)
#define EVENT_METHOD(name, which) \
    {#name, (PyCFunction)(void (*)(void))event_##name, METH_FASTCALL | METH_KEYWORDS, \
     #name "($self, /, event=None, *args, **fields)\n--\n\nAs structlog's own."},
static PyMethodDef event_methods[] = {METHODS(EVENT_METHOD){0}};

#endif
