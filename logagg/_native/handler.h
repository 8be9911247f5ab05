/* `Handler.handle`, and what surrounds a call: thread, process, task, context.

   Everything is looked up at each call, in the place where Python looks it up, and
   compared with what it is where nothing has been patched. */

#ifndef LOGAGG_HANDLER_H
#define LOGAGG_HANDLER_H

#include "known.h"
#include "line.h"

/* ---- what surrounds a call ---------------------------------------------------------- */

/* Whether an attribute of a class is what it was at `bind`, asked anew only when the
   class or one of its bases has changed: then its version is another. */
typedef struct {
    PyTypeObject *type;
    unsigned version;
    int plain;
} Verdict;

static inline unsigned version_of(PyTypeObject *type)
{
    return type->tp_version_tag;
}

static int has_attribute(PyTypeObject *type, PyObject *name, PyObject *expected)
{
    PyObject *found = PyObject_GetAttr((PyObject *)type, name);
    if (found == NULL)
        PyErr_Clear();
    Py_XDECREF(found);
    return found == expected;
}

/* Whether structlog's context variables and OpenTelemetry have nothing to add. */
static int surroundings_are_plain(int *structured)
{
    static Seen trace, contextvars;
    *structured = 0;
    if (seen_member(&trace, modules, w_trace) != NULL)
        return 0;
    PyObject *module = seen_member(&contextvars, modules, w_contextvars);
    if (module == NULL)
        return 1;
    *structured = 1;
    PyObject *globals = PyModule_Check(module) ? PyModule_GetDict(module) : NULL;
    static Seen seen;
    PyObject *variables = globals == NULL ? NULL
                                          : seen_member(&seen, globals, w__CONTEXT_VARS);
    if (variables == NULL || !PyDict_CheckExact(variables)
        || PyDict_GET_SIZE(variables) > 32)
        return 0;
    PyObject *name, *variable, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(variables, &position, &name, &variable)) {
        if (!PyContextVar_CheckExact(variable)
            || PyContextVar_Get(variable, Py_Ellipsis, &value) < 0) {
            PyErr_Clear();
            return 0;
        }
        Py_XDECREF(value);
        if (value != Py_Ellipsis)
            return 0;
    }
    return 1;
}

/* The pid; a new reference, NULL in a forked child that Python has not seen. */
static const int64_t *pid_place; /* NULL where pages cannot be wiped */
static PyObject *pid_object;
static int64_t pid_number;

static PyObject *own_pid(void)
{
    int64_t pid = pid_place == NULL ? (int64_t)getpid() : *pid_place;
    if (pid == 0)
        return NULL;
    if (pid != pid_number) {
        PyObject *made = PyLong_FromLongLong(pid);
        if (made == NULL) {
            PyErr_Clear();
            return NULL;
        }
        Py_XSETREF(pid_object, made);
        pid_number = pid;
    }
    return Py_NewRef(pid_object);
}

/* The Thread that runs, by its identifier; borrowed. */
static PyObject *thread_of(unsigned long identifier)
{
    static struct {
        uint64_t version;
        unsigned long identifier;
        PyObject *thread;
    } known[THREADS], *place;
    place = &known[(identifier >> 12) & (THREADS - 1)]; /* the address of its stack's end */
    if (place->identifier == identifier && is_at(threads, place->version))
        return place->thread;
    PyObject *number = PyLong_FromUnsignedLong(identifier);
    place->thread = number == NULL ? NULL : member(threads, number);
    place->identifier = identifier;
    place->version = place->thread == NULL ? 0 : version_of_dict(threads);
    Py_XDECREF(number);
    return place->thread;
}

/* The name of this thread; a new reference, NULL where Python must find it out. */
static PyObject *own_thread(void)
{
    static Verdict known;
    static Seen get_ident, names;
    if (seen_member(&get_ident, threading_globals, w_get_ident) != real_ident)
        return NULL; /* patched by gevent: greenlets are threads */
    PyObject *thread = thread_of(PyThread_get_thread_ident());
    if (thread == NULL)
        return NULL;
    PyTypeObject *type = Py_TYPE(thread);
    if (known.type != type || known.version != version_of(type) || known.version == 0) {
        known.plain = has_attribute(type, w_name, thread_name_of);
        known.type = type;
        known.version = version_of(type);
    }
    PyObject *dict = known.plain ? dict_of(thread) : NULL;
    PyObject *name = dict == NULL ? NULL : seen_member(&names, dict, w__name);
    return name != NULL && PyUnicode_CheckExact(name) ? Py_NewRef(name) : NULL;
}

/* The name of this process, as multiprocessing has it; as above. */
static PyObject *own_process(void)
{
    static Seen modules_seen, current, names;
    PyObject *module = seen_member(&modules_seen, modules, w_mp_process);
    if (module == NULL)
        return Py_NewRef(w_main_process);
    PyObject *globals = PyModule_Check(module) ? PyModule_GetDict(module) : NULL;
    PyObject *process = globals == NULL ? NULL
                                        : seen_member(&current, globals, w__current_process);
    PyObject *dict = process == NULL ? NULL : dict_of(process);
    PyObject *name = dict == NULL ? NULL : seen_member(&names, dict, w__name);
    return name != NULL && PyUnicode_CheckExact(name) ? Py_NewRef(name) : NULL;
}

/* The name of the asyncio task that runs, Py_None without one; NULL: Python must find
   out. Before Python 3.12 records have none. */
static PyObject *own_task(void)
{
    static Seen package, own, loops, tasks;
    if (!has_task_name || seen_member(&package, modules, w_asyncio) == NULL)
        return Py_NewRef(Py_None);
    PyObject *module = seen_member(&own, modules, w__asyncio);
    PyObject *globals = module != NULL && PyModule_Check(module) ? PyModule_GetDict(module)
                                                                 : NULL;
    PyObject *running = globals == NULL ? NULL
                                        : seen_member(&loops, globals, w__get_running_loop);
    PyObject *current = globals == NULL ? NULL
                                        : seen_member(&tasks, globals, w_current_task);
    if (running == NULL || current == NULL || !PyCFunction_Check(running)
        || !PyCFunction_Check(current))
        return NULL;
    PyObject *loop = PyObject_CallNoArgs(running);
    if (loop == NULL) {
        PyErr_Clear();
        return NULL;
    }
    Py_DECREF(loop);
    if (loop == Py_None)
        return Py_NewRef(Py_None);
    PyObject *task = PyObject_CallNoArgs(current);
    PyObject *name = NULL;
    if (task == Py_None)
        name = Py_NewRef(Py_None);
    else if (task != NULL)
        name = PyObject_CallMethodNoArgs(task, w_get_name);
    Py_XDECREF(task);
    if (name == NULL)
        PyErr_Clear();
    else if (name != Py_None && !PyUnicode_CheckExact(name))
        Py_CLEAR(name);
    return name;
}

/* A handler whose records go a plain way: its transport, borrowed; NULL otherwise. */
static PyObject *plain_transport(PyObject *handler, int *redact)
{
    static Verdict known;
    PyTypeObject *type = Py_TYPE(handler);
    if (known.type != type || known.version != version_of(type) || known.version == 0) {
        known.plain = has_attribute(type, w_emit, handler_emit)
                      && has_attribute(type, w__contextual, Py_False);
        known.type = type;
        known.version = version_of(type);
    }
    PyObject *dict = known.plain ? dict_of(handler) : NULL;
    if (dict == NULL)
        return NULL;
    HandlerView *view = view_of_handler(dict);
    if (!view->is_plain || view->filters == NULL || !PyList_CheckExact(view->filters)
        || PyList_GET_SIZE(view->filters) > 0)
        return NULL;
    *redact = view->redact;
    return view->transport;
}

static int is_left(PyObject *logger)
{
    return !PyUnicode_CheckExact(logger) || PySet_Contains(left_loggers, logger) != 0;
}

/* As `logging` treats what a handler raises: report, never raise; but an exception that
   ends the process, such as Ctrl-C, goes on. Returns whether it was reported. */
static int report(PyObject *handler)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return 0;
    PyErr_WriteUnraisable(handler);
    return 1;
}

/* ---- Handler.handle ----------------------------------------------------------------- */

static PyObject *referent(PyObject *reference)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *object = NULL;
    if (PyWeakref_GetRef(reference, &object) < 0)
        PyErr_Clear();
    Py_XDECREF(object); /* it is only compared with one that is held */
    return object;
#else
    return PyWeakref_GetObject(reference);
#endif
}

/* Send a record that a handler was given. LEFT: Python must. */
static int send_given(PyObject *handler, PyObject *record)
{
    PyObject *values[MOST_ATTRIBUTES], *name, *value;
    Py_ssize_t position = 0;
    int64_t earliest;
    int structured, count = 0;
    Fields fields = {0};
    PyObject *transport = plain_transport(handler, &fields.redact);
    if (transport == NULL || Py_TYPE(transport) != transport_type
        || Py_TYPE(record) != record_type || !surroundings_are_plain(&structured))
        return LEFT;
    PyObject *dict = dict_of(record); /* a record has one: no object is made for it */
    if (dict == NULL || PyDict_GET_SIZE(dict) > 1000)
        return LEFT;
    while (count < attribute_count && PyDict_Next(dict, &position, &name, &value)) {
        if (name != attributes[count])
            return LEFT;
        values[count++] = value;
    }
    if (count < attribute_count)
        return LEFT;
#define VALUE(which) values[attribute_place[which]]
    PyObject *message = VALUE(A_MSG), *arguments = VALUE(A_ARGS), *created = VALUE(A_CREATED);
    PyObject *recents = SLOT(transport, T.recent), *thread = VALUE(A_THREAD);
    const double *latest = cell_of(SLOT(transport, T.latest));
    if (VALUE(A_EXC_INFO) != Py_None || VALUE(A_EXC_TEXT) != Py_None
        || VALUE(A_STACK_INFO) != Py_None || !PyUnicode_CheckExact(message)
        || is_left(VALUE(A_NAME)) || !PyFloat_CheckExact(created)
        || !PyLong_CheckExact(thread) || recents == NULL || !PyDict_CheckExact(recents)
        || latest == NULL || !slot_number(transport, T.earliest, &earliest)
        || !(earliest < PyFloat_AS_DOUBLE(created)
             && PyFloat_AS_DOUBLE(created) < (*latest > 0 ? *latest : earliest + 3)))
        return LEFT;
    if (structured && PyUnicode_GET_LENGTH(message) > 0
        && PyUnicode_READ_CHAR(message, 0) == '{')
        return LEFT; /* an event that structlog has rendered */
    PyObject *recent = member(recents, thread);
    if (recent != NULL && PyWeakref_Check(recent) && referent(recent) == record)
        return SENT; /* by another handler or logger */
    if (!PyTuple_CheckExact(arguments))
        return LEFT; /* a mapping; or None, in a record that a queue has passed on */
    if (PyTuple_GET_SIZE(arguments) > 0)
        fields.arguments = arguments;
    if (has_task_name && VALUE(A_TASK_NAME) != Py_None) {
        fields.task = VALUE(A_TASK_NAME);
        if (!PyUnicode_CheckExact(fields.task))
            return LEFT;
    }
    fields.level = VALUE(A_LEVELNAME);
    fields.logger = VALUE(A_NAME);
    fields.message = message;
    fields.pid = VALUE(A_PROCESS);
    fields.process = VALUE(A_PROCESS_NAME);
    fields.thread = VALUE(A_THREAD_NAME);
    if (PyDict_GET_SIZE(dict) > attribute_count) {
        fields.fields = dict;
        fields.skip = attribute_count;
    }
    /* Borrowed references last until the dictionary is changed; the `__str__` of an
       argument could do that, or end the transport. */
    PyObject *held[] = {transport, dict, message, arguments, fields.level, fields.logger,
                        fields.pid, fields.process, fields.thread, fields.task, thread};
    int holds = (int)(sizeof held / sizeof *held);
    for (int n = 0; n < holds; n++)
        Py_XINCREF(held[n]);
    int result = send_record(transport, &fields);
    if (result == SENT) {
        PyObject *reference = PyWeakref_NewRef(record, NULL);
        recents = SLOT(transport, T.recent);
        if (reference == NULL || PyDict_SetItem(recents, thread, reference) < 0)
            PyErr_Clear();
        Py_XDECREF(reference);
    }
    for (int n = 0; n < holds; n++)
        Py_XDECREF(held[n]);
    return result;
}

static PyObject *left_handle; /* Handler.handle in Python */

static PyObject *handle(PyObject *self, PyObject *record)
{
    int result = send_given(self, record);
    if (result == LEFT)
        return PyObject_CallFunctionObjArgs(left_handle, self, record, NULL);
    if (result == FAILED && !report(self))
        return NULL;
    return Py_NewRef(returns_record ? record : Py_True);
}

static PyMethodDef handle_method = {
    "handle", handle, METH_O,
    "handle($self, record, /)\n--\n\n"
    "Filter and emit; no lock is held while the record is encoded."};

#endif
