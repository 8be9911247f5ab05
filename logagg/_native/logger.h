/* The forms that `logagg.install` puts in the place of logging's own: of the record
   factory and of a logger's methods. */

#ifndef LOGAGG_LOGGER_H
#define LOGAGG_LOGGER_H

#include "handler.h"

/* ---- the record factory ------------------------------------------------------------- */

static PyObject *paths;      /* by path, (file name, module) */
static PyObject *left_names; /* the Python function that finds them */
static PyObject *left_factory, *record_template;
static double start_time; /* seconds; before Python 3.13 */
static int64_t start_ns;   /* since then */

/* A LogRecord as `logging` makes it, or NULL with nothing raised where Python must. */
static PyObject *
make_plain(PyObject *name, PyObject *level, PyObject *path, PyObject *line,
           PyObject *message, PyObject *arguments, PyObject *exception, PyObject *function,
           PyObject *stack)
{
    PyObject *record = NULL, *dict = NULL, *places = NULL, *own[6] = {0};
    struct timespec now;
    PyObject *level_name = PyLong_CheckExact(level) ? member(number_to_name, level) : NULL;
    if (level_name == NULL || !PyUnicode_CheckExact(path) || !records_are_plain())
        return NULL;
    if (PyTuple_CheckExact(arguments)) {
        if (PyTuple_GET_SIZE(arguments) == 1) {
            PyTypeObject *type = Py_TYPE(PyTuple_GET_ITEM(arguments, 0));
            if (type != &PyUnicode_Type && type != &PyLong_Type && type != &PyFloat_Type
                && type != &PyTuple_Type && type != &PyBytes_Type)
                return NULL; /* perhaps a mapping, which takes the tuple's place */
        }
    } else if (arguments != Py_None) {
        return NULL;
    }
    places = Py_XNewRef(member(paths, path));
    if (places == NULL)
        places = PyObject_CallOneArg(left_names, path);
    own[0] = own_thread();
    own[1] = own_process();
    own[2] = own_pid();
    own[3] = own_task();
    own[4] = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
    dict = PyDict_Copy(record_template);
    if (places == NULL || !PyTuple_CheckExact(places) || own[0] == NULL || own[1] == NULL
        || own[2] == NULL || own[3] == NULL || own[4] == NULL || dict == NULL)
        goto out;
    clock_gettime(CLOCK_REALTIME, &now);
    double created, milliseconds, relative;
#if PY_VERSION_HEX >= 0x030D0000
    int64_t now_ns = now.tv_sec * SECOND + now.tv_nsec;
    created = (double)now_ns / 1e9;
    milliseconds = (double)(now_ns % SECOND / 1000000);
    if (milliseconds == 999.0 && (int64_t)created != now_ns / SECOND)
        milliseconds = 0.0; /* the float was rounded up to the next second */
    relative = (double)(now_ns - start_ns) / 1e6;
#else
    created = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    milliseconds = (double)(int64_t)((created - (double)(int64_t)created) * 1000);
    relative = (created - start_time) * 1000;
#endif
    PyObject *times[] = {PyFloat_FromDouble(created), PyFloat_FromDouble(milliseconds),
                         PyFloat_FromDouble(relative)};
    PyObject *all[] = {
        name, message, arguments, level_name, level, path, PyTuple_GET_ITEM(places, 0),
        PyTuple_GET_ITEM(places, 1), exception, Py_None, stack, line, function, times[0],
        times[1], times[2], own[4], own[0], own[1], own[2], own[3]};
    int failed = 0;
    for (int n = 0; n < attribute_count; n++)
        failed |= all[n] == NULL || PyDict_SetItem(dict, attributes[n], all[n]) < 0;
    for (int n = 0; n < 3; n++)
        Py_XDECREF(times[n]);
    record = failed ? NULL : record_type->tp_alloc(record_type, 0);
    if (record != NULL && PyObject_SetAttr(record, w___dict__, dict) < 0)
        Py_CLEAR(record);
out:
    PyErr_Clear();
    Py_XDECREF(places);
    Py_XDECREF(dict);
    for (int n = 0; n < 5; n++)
        Py_XDECREF(own[n]);
    return record;
}

static PyObject *
make_record(PyObject *module, PyObject *const *values, Py_ssize_t count, PyObject *names)
{
    if (count >= 7 && count <= 9 && names == NULL) {
        PyObject *record = make_plain(values[0], values[1], values[2], values[3], values[4],
                                      values[5], values[6],
                                      count > 7 ? values[7] : Py_None,
                                      count > 8 ? values[8] : Py_None);
        if (record != NULL)
            return record;
    }
    return PyObject_Vectorcall(left_factory, values, (size_t)count, names);
}

/* ---- the methods of a logger -------------------------------------------------------- */

static PyObject *left_methods[LEVELS + 1]; /* in Python; the last is `log` */
static PyObject *expected_methods;         /* by name, of Logger, what a call passes */

static int logger_is_plain(PyTypeObject *type)
{
    static Verdict known[2];
    int which = type == root_type;
    if (!which && type != logger_type)
        return 0;
    Verdict *verdict = &known[which];
    if (verdict->version != version_of(type) || verdict->version == 0) {
        PyObject *name, *expected;
        Py_ssize_t position = 0;
        verdict->plain = 1;
        while (PyDict_Next(expected_methods, &position, &name, &expected))
            verdict->plain &= has_attribute(type, name, expected);
        verdict->version = version_of(type);
    }
    return verdict->plain;
}

typedef struct {
    PyObject *ours;      /* the first `logagg.Handler` that takes the record, held; or NULL */
    PyObject *transport; /* its own, borrowed from it */
    int redact;          /* whether it does */
    int several;         /* whether another one does */
    int others;          /* whether a handler of another kind does */
    int any;             /* whether there is any handler, of whatever level */
} Chain;

enum { UNCLEAR, NOT, OURS, OTHER };

/* Whether a handler takes records of a level; and a `logagg.Handler`'s transport. */
static int takes(PyObject *handler, long level, PyObject **transport, int *redact)
{
    PyObject *dict = dict_of(handler);
    if (dict == NULL)
        return UNCLEAR;
    *transport = plain_transport(handler, redact);
    PyObject *least = *transport != NULL ? view_of_handler(dict)->level
                                         : member(dict, w_level);
    if (least == NULL || !PyLong_CheckExact(least))
        return UNCLEAR;
    if (PyLong_AsLong(least) > level)
        return NOT;
    if (*transport == NULL || view_of_handler(dict)->has_handle
        || !has_attribute(Py_TYPE(handler), w_handle, handler_handle))
        return OTHER;
    return OURS;
}

/* Find the handlers of a logger and its ancestors. Returns whether that was plain. */
static int find_handlers(PyObject *dict, PyObject *level, Chain *chain)
{
    long wanted = PyLong_AsLong(level);
    for (int depth = 0; depth < 100; depth++) {
        LoggerView view = *view_of_logger(dict, 0);
        PyObject *handlers = view.handlers;
        if (handlers == NULL || !PyList_CheckExact(handlers))
            return 0;
        for (Py_ssize_t n = 0; n < PyList_GET_SIZE(handlers); n++) {
            PyObject *handler = Py_NewRef(PyList_GET_ITEM(handlers, n)), *transport;
            int redact, taken = takes(handler, wanted, &transport, &redact);
            chain->any = 1;
            if (taken == OURS && chain->ours == NULL) {
                chain->ours = handler; /* with the reference */
                chain->transport = transport;
                chain->redact = redact;
                continue;
            }
            Py_DECREF(handler);
            if (taken == UNCLEAR)
                return 0;
            chain->several |= taken == OURS;
            chain->others |= taken == OTHER;
        }
        if (view.propagate == Py_False)
            return 1;
        if (view.propagate != Py_True || view.parent == NULL)
            return 0;
        if (view.parent == Py_None)
            return 1;
        dict = dict_of(view.parent);
        if (dict == NULL)
            return 0;
    }
    return 0;
}

/* Whether a record would be made by a factory that is known to add nothing. */
static int factory_is_plain(void)
{
    static Seen seen;
    PyObject *factory = seen_member(&seen, logging_globals, w__logRecordFactory);
    return (factory == plain_factory || factory == own_factory) && records_are_plain();
}

/* The keyword arguments of a log call. Returns whether they are plain. */
static int
plain_keywords(PyObject *const *values, PyObject *names, PyObject **extra, int *placed)
{
    for (Py_ssize_t n = 0; names != NULL && n < PyTuple_GET_SIZE(names); n++) {
        PyObject *name = PyTuple_GET_ITEM(names, n), *value = values[n];
        if (name == w_extra && (value == Py_None || PyDict_CheckExact(value))) {
            if (value != Py_None && PyDict_GET_SIZE(value) > 0)
                *extra = value;
        } else if (name == w_stacklevel && PyLong_CheckExact(value)) {
            *placed = 1;
        } else if ((name == w_exc_info || name == w_stack_info)
                   && (value == Py_None || value == Py_False)) {
            continue;
        } else {
            return 0;
        }
    }
    return 1;
}

/* Make the record and give it to all handlers, as `Logger._log` does from Python. */
static int
send_to_all(PyObject *self, PyObject *level, PyObject *message, PyObject *const *arguments,
            Py_ssize_t count, PyObject *extra)
{
    PyObject *record = NULL, *values = NULL, *line = NULL, *name = NULL;
    PyFrameObject *frame = PyEval_GetFrame();
    if (frame == NULL)
        return LEFT;
    PyCodeObject *code = PyFrame_GetCode(frame);
    int result = LEFT;
    PyObject *dict = dict_of(self);
    name = dict == NULL ? NULL : Py_XNewRef(member(dict, w_name));
    line = PyLong_FromLong(PyFrame_GetLineNumber(frame));
    values = PyTuple_New(count);
    PyObject *own_file = member(logging_globals, w__srcfile);
    if (name == NULL || line == NULL || values == NULL || own_file == NULL
        || !PyUnicode_Check(own_file)
        || PyUnicode_Compare(code->co_filename, own_file) == 0)
        goto out; /* the caller is further up, or is not wanted */
    for (Py_ssize_t n = 0; n < count; n++)
        PyTuple_SET_ITEM(values, n, Py_NewRef(arguments[n]));
    record = make_plain(name, level, code->co_filename, line, message, values, Py_None,
                        code->co_name, Py_None);
    if (record == NULL)
        goto out;
    if (extra != NULL) {
        PyObject *fields = dict_of(record), *field, *value;
        Py_ssize_t position = 0;
        while (PyDict_Next(extra, &position, &field, &value)) {
            if (!PyUnicode_CheckExact(field) || PyDict_Contains(record_template, field) != 0
                || PyUnicode_CompareWithASCIIString(field, "message") == 0
                || PyUnicode_CompareWithASCIIString(field, "asctime") == 0
                || PyDict_SetItem(fields, field, value) < 0)
                goto out; /* Python raises KeyError */
        }
    }
    result = SENT;
    long wanted = PyLong_AsLong(level);
    PyObject *logger = Py_NewRef(self);
    while (logger != NULL && result == SENT) {
        PyObject *handlers = PyObject_GetAttr(logger, w_handlers);
        for (Py_ssize_t n = 0; handlers != NULL && n < PyList_GET_SIZE(handlers); n++) {
            PyObject *handler = Py_NewRef(PyList_GET_ITEM(handlers, n));
            PyObject *least = PyObject_GetAttr(handler, w_level), *done = NULL;
            if (least != NULL && PyLong_AsLong(least) <= wanted && !PyErr_Occurred())
                done = PyObject_CallMethodOneArg(handler, w_handle, record);
            Py_XDECREF(least);
            Py_XDECREF(done);
            Py_DECREF(handler);
            if (PyErr_Occurred()) {
                result = FAILED;
                break;
            }
        }
        PyObject *propagates = PyObject_GetAttr(logger, w_propagate), *next = NULL;
        if (handlers != NULL && propagates == Py_True)
            next = PyObject_GetAttr(logger, w_parent);
        if (next == Py_None)
            Py_CLEAR(next);
        Py_XDECREF(propagates);
        Py_XDECREF(handlers);
        Py_SETREF(logger, next);
        if (PyErr_Occurred())
            result = FAILED;
    }
    Py_XDECREF(logger);
out:
    if (result == LEFT)
        PyErr_Clear();
    Py_DECREF(code);
    Py_XDECREF(name);
    Py_XDECREF(line);
    Py_XDECREF(values);
    Py_XDECREF(record);
    return result;
}

/* Send one record to the only handler there is. */
static int
send_to_ours(PyObject *self, const Chain *chain, PyObject *level, PyObject *message,
             PyObject *const *arguments, Py_ssize_t count, PyObject *extra)
{
    int structured, result = LEFT;
    PyObject *dict = dict_of(self), *task = NULL, *transport = chain->transport;
    Fields fields = {.message = message, .fields = extra, .redact = chain->redact};
    fields.logger = dict == NULL ? NULL : view_of_logger(dict, 1)->name;
    fields.level = member(number_to_name, level);
    if (fields.logger == NULL || fields.level == NULL
        || is_left(fields.logger)
        || !surroundings_are_plain(&structured)
        || (structured && PyUnicode_GET_LENGTH(message) > 0
            && PyUnicode_READ_CHAR(message, 0) == '{'))
        return LEFT;
    PyObject *values = NULL;
    PyObject *held[] = {Py_NewRef(transport), Py_NewRef(fields.logger),
                        Py_NewRef(fields.level)};
    fields.pid = own_pid();
    fields.thread = own_thread();
    fields.process = own_process();
    task = own_task();
    if (fields.pid == NULL || fields.thread == NULL || fields.process == NULL
        || task == NULL)
        goto out;
    if (task != Py_None)
        fields.task = task;
    if (count > 0) {
        PyTypeObject *type = Py_TYPE(arguments[0]);
        if (count == 1 && type != &PyUnicode_Type && type != &PyLong_Type
            && type != &PyFloat_Type && type != &PyTuple_Type)
            goto out; /* perhaps a mapping */
        values = PyTuple_New(count);
        if (values == NULL)
            goto out;
        for (Py_ssize_t n = 0; n < count; n++)
            PyTuple_SET_ITEM(values, n, Py_NewRef(arguments[n]));
        fields.arguments = values;
    }
    result = send_record(transport, &fields);
    if (result == FAILED && report(chain->ours))
        result = SENT;
out:
    if (result == LEFT)
        PyErr_Clear();
    for (int n = 0; n < (int)(sizeof held / sizeof *held); n++)
        Py_DECREF(held[n]);
    Py_XDECREF(values);
    Py_XDECREF(task);
    Py_XDECREF(fields.pid);
    Py_XDECREF(fields.thread);
    Py_XDECREF(fields.process);
    return result;
}

/* One call of a logger's method. LEFT: Python must. */
static int
log_call(PyObject *self, PyObject *level, PyObject *const *values, Py_ssize_t count,
         PyObject *names)
{
    Chain chain = {0};
    PyObject *extra = NULL;
    int placed = 0;
    PyTypeObject *type = Py_TYPE(self);
    if (!logger_is_plain(type))
        return LEFT;
    PyObject *dict = dict_of(self);
    if (dict == NULL || PyDict_GET_SIZE(dict) > (type == root_type ? 8 : 9))
        return LEFT;
    LoggerView *view = view_of_logger(dict, 1);
    if (view->disabled != Py_False)
        return LEFT;
    PyObject *enabled = enabled_for(view, level), *filters = view->filters;
    if (enabled == Py_False && count > 0)
        return SENT;
    int result = LEFT;
    if (enabled != Py_True || count < 1 || filters == NULL || !PyList_CheckExact(filters)
        || PyList_GET_SIZE(filters) > 0 || !PyUnicode_CheckExact(values[0])
        || !plain_keywords(values + count, names, &extra, &placed) || !factory_is_plain())
        return LEFT;
    if (find_handlers(dict, level, &chain) && chain.any) {
        if (chain.others || chain.several) {
            if (!placed)
                result = send_to_all(self, level, values[0], values + 1, count - 1, extra);
        } else if (chain.ours != NULL) {
            result = send_to_ours(self, &chain, level, values[0], values + 1, count - 1, extra);
        } else {
            result = SENT; /* none wants this level */
        }
    }
    Py_XDECREF(chain.ours);
    return result;
}

static PyObject *call_left(PyObject *function, PyObject *self, PyObject *const *values,
                           Py_ssize_t count, PyObject *names)
{
    PyObject *few[24], **all = few;
    Py_ssize_t total = count + 1 + (names == NULL ? 0 : PyTuple_GET_SIZE(names));
    if (total > 24 && (all = PyMem_New(PyObject *, total)) == NULL)
        return PyErr_NoMemory();
    all[0] = self;
    memcpy(all + 1, values, (size_t)(total - 1) * sizeof *all);
    PyObject *result = PyObject_Vectorcall(function, all, (size_t)count + 1, names);
    if (all != few)
        PyMem_Free(all);
    return result;
}

static PyObject *log_method(PyObject *self, PyObject *const *values, Py_ssize_t count,
                            PyObject *names, int which)
{
    int result = LEFT;
    if (which < LEVELS)
        result = log_call(self, level_numbers[which], values, count, names);
    else if (count > 0 && PyLong_CheckExact(values[0]))
        result = log_call(self, values[0], values + 1, count - 1, names);
    if (result == LEFT)
        return call_left(left_methods[which], self, values, count, names);
    if (result == FAILED)
        return NULL;
    Py_RETURN_NONE;
}

#define METHODS(X) X(debug, 0) X(info, 1) X(warning, 2) X(error, 3) X(critical, 4)
#define DEFINE(name, which) \
    static PyObject *logger_##name(PyObject *self, PyObject *const *values, \
                                   Py_ssize_t count, PyObject *names) \
    { return log_method(self, values, count, names, which); }
METHODS(DEFINE)
DEFINE(log, 5)
#define METHOD(name, which) \
    {#name, (PyCFunction)(void (*)(void))logger_##name, METH_FASTCALL | METH_KEYWORDS, \
     #name "($self, /, msg, *args, **kwargs)\n--\n\nAs logging's own."},
static PyMethodDef logger_methods[] = {
    METHODS(METHOD)
    {"log", (PyCFunction)(void (*)(void))logger_log, METH_FASTCALL | METH_KEYWORDS,
     "log($self, /, level, msg, *args, **kwargs)\n--\n\nAs logging's own."},
    {0}};

#endif
