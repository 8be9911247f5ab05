/* A record's line, and its way into the pipe: the only place that changes anything.

   `send_locked` is the stretch in which no Python code runs; the head of `emit.c`
   explains why that is enough. */

#ifndef LOGAGG_LINE_H
#define LOGAGG_LINE_H

#include <unistd.h>

#include "given.h"
#include "json.h"

#define CHECK_BYTES (4 * 1024 * 1024) /* logagg.client.transport._CHECK_BYTES */

/* ---- a record's fields, in the places that they come from --------------------------- */

typedef struct {
    PyObject *level;   /* a record's name of it */
    PyObject *logger;
    PyObject *message; /* a str */
    PyObject *arguments; /* a tuple, or NULL */
    PyObject *pid, *process, *thread; /* int, str, str */
    PyObject *task; /* a str, or NULL */
    PyObject *fields; /* a dict, or NULL */
    int skip;         /* so many members of it are the record's own */
    PyObject *const *values; /* keyword arguments that are fields, or NULL */
    PyObject *value_names;
    int redact;
} Fields;

/* `"logger":"NAME","message":` by logger, encoded once. */
#define LOGGERS 64
static struct {
    PyObject *name;
    int length;
    char text[232];
} loggers[LOGGERS];

static char *put_logger(char *at, PyObject *name)
{
    size_t place = ((uintptr_t)name >> 4) & (LOGGERS - 1);
    if (loggers[place].name != name) {
        Py_ssize_t length;
        const char *text;
        if (!PyUnicode_CheckExact(name) || (text = utf8_of(name, &length)) == NULL
            || length > 30) {
            refused = LEAVE;
            return NULL;
        }
        char *start = loggers[place].text;
        memcpy(start, "\"logger\":\"", 10);
        char *end = put_text(start + 10, text, length);
        memcpy(end, "\",\"message\":", 12);
        loggers[place].length = (int)(end + 12 - start);
        Py_XSETREF(loggers[place].name, Py_NewRef(name));
    }
    memcpy(at, loggers[place].text, sizeof loggers[place].text);
    return at + loggers[place].length;
}

/* `,"pid":N,"process":"NAME","thread":"NAME"` by thread, encoded once. */
#define THREADS 16
static struct {
    PyObject *thread, *process;
    long long pid;
    int length;
    char text[488];
} origins[THREADS];

static char *put_origin(char *at, PyObject *pid, PyObject *process, PyObject *thread)
{
    size_t place = ((uintptr_t)thread >> 4) & (THREADS - 1);
    int overflow;
    if (!PyLong_CheckExact(pid)) {
        refused = LEAVE;
        return NULL;
    }
    long long number = PyLong_AsLongLongAndOverflow(pid, &overflow);
    if (origins[place].thread != thread || origins[place].process != process
        || origins[place].pid != number) {
        Py_ssize_t thread_length, process_length;
        const char *thread_text, *process_text;
        if (overflow || !PyUnicode_CheckExact(process) || !PyUnicode_CheckExact(thread)
            || (process_text = utf8_of(process, &process_length)) == NULL
            || (thread_text = utf8_of(thread, &thread_length)) == NULL
            || process_length > 32 || thread_length > 32) {
            refused = LEAVE;
            return NULL;
        }
        char *start = origins[place].text, *end = start;
        memcpy(end, ",\"pid\":", 7);
        end = put_signed(end + 7, number);
        memcpy(end, ",\"process\":\"", 12);
        end = put_text(end + 12, process_text, process_length);
        memcpy(end, "\",\"thread\":\"", 12);
        end = put_text(end + 12, thread_text, thread_length);
        *end++ = '"';
        origins[place].length = (int)(end - start);
        origins[place].pid = number;
        PyObject *old_thread = origins[place].thread, *old = origins[place].process;
        origins[place].thread = Py_NewRef(thread);
        origins[place].process = Py_NewRef(process);
        Py_XDECREF(old_thread);
        Py_XDECREF(old);
    }
    if (origins[place].length <= 128)
        memcpy(at, origins[place].text, 128);
    else
        memcpy(at, origins[place].text, sizeof origins[place].text);
    return at + origins[place].length;
}

/* Whether `message % arguments` can be written without a call of Python's. */
static int formats_easily(PyObject *message, PyObject *arguments)
{
    if (!PyUnicode_IS_COMPACT_ASCII(message))
        return 0;
    for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(arguments); n++) {
        PyTypeObject *type = Py_TYPE(PyTuple_GET_ITEM(arguments, n));
        if (type != &PyUnicode_Type && type != &PyLong_Type)
            return 0;
    }
    const char *text = (const char *)PyUnicode_1BYTE_DATA(message);
    const char *end = text + PyUnicode_GET_LENGTH(message);
    Py_ssize_t used = 0;
    while ((text = memchr(text, '%', (size_t)(end - text))) != NULL) {
        char kind = ++text < end ? *text++ : 0;
        if (kind == '%')
            continue;
        if (used == PyTuple_GET_SIZE(arguments))
            return 0;
        PyObject *argument = PyTuple_GET_ITEM(arguments, used++);
        if (PyLong_CheckExact(argument)) {
            int overflow;
            PyLong_AsLongLongAndOverflow(argument, &overflow);
            if ((kind != 'd' && kind != 's') || overflow)
                return 0;
        } else if (kind != 's') {
            return 0;
        }
    }
    return used == PyTuple_GET_SIZE(arguments);
}

/* `"text"` of a message for which `formats_easily` holds. */
static char *put_formatted(char *at, PyObject *message, PyObject *arguments)
{
    const char *text = (const char *)PyUnicode_1BYTE_DATA(message);
    const char *end = text + PyUnicode_GET_LENGTH(message);
    Py_ssize_t used = 0;
    if (6 * (end - text) >= buffer_end - at) {
        refused = LEAVE;
        return NULL;
    }
    *at++ = '"';
    while (text < end) {
        const char *sign = memchr(text, '%', (size_t)(end - text));
        if (sign == NULL) {
            at = put_text(at, text, end - text);
            break;
        }
        at = put_text(at, text, sign - text);
        text = sign + 2;
        if (sign[1] == '%') {
            *at++ = '%';
            continue;
        }
        PyObject *argument = PyTuple_GET_ITEM(arguments, used++);
        if (PyLong_CheckExact(argument))
            at = put_signed(at, PyLong_AsLongLong(argument));
        else if ((at = put_str_text(at, argument)) == NULL)
            return NULL;
        if (6 * (end - text) >= buffer_end - at) {
            refused = LEAVE;
            return NULL;
        }
    }
    *at++ = '"';
    return at;
}

/* Whether the caller has given a field of that name. */
static int has_field(const Fields *record, PyObject *name)
{
    if (record->fields != NULL && PyDict_Contains(record->fields, name) != 0)
        return 1;
    if (record->value_names != NULL)
        for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(record->value_names); n++)
            if (PyUnicode_Compare(PyTuple_GET_ITEM(record->value_names, n), name) == 0)
                return 1;
    return 0;
}

/* The fields after the seq, as `logagg.core.encode.body` writes them, those that all
   records of the process have (or NULL) after the caller's. `text` gets the length of
   what is known to be text. */
static char *
put_fields(char *at, const Fields *record, PyObject *process_fields, size_t *text)
{
    Limits limits = {record->redact, MOST_VALUES};
    char *start = at;
    at = put_logger(at, record->logger);
    if (at == NULL)
        return NULL;
    if (record->arguments != NULL)
        at = put_formatted(at, record->message, record->arguments);
    else
        at = put_str(at, record->message);
    if (at == NULL)
        return NULL;
    *text = (size_t)(at - start);
    at = put_origin(at, record->pid, record->process, record->thread);
    if (at == NULL)
        return NULL;
    if (limits.redact && has_field(record, word_value) && has_field(record, word_key)) {
        refused = LEAVE;
        return NULL;
    }
    if (record->fields != NULL) {
        PyObject *name, *value;
        Py_ssize_t position = 0;
        int skip = record->skip;
        while (PyDict_Next(record->fields, &position, &name, &value)) {
            if (skip-- > 0)
                continue;
            at = put_pair(at, name, value, 0, &limits);
            if (at == NULL)
                return NULL;
        }
    }
    if (record->value_names != NULL) {
        for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(record->value_names); n++) {
            PyObject *name = PyTuple_GET_ITEM(record->value_names, n);
            at = put_pair(at, name, record->values[n], 0, &limits);
            if (at == NULL)
                return NULL;
        }
    }
    if (process_fields != NULL) {
        PyObject *name, *value;
        Py_ssize_t position = 0;
        while (PyDict_Next(process_fields, &position, &name, &value)) {
            if (has_field(record, name))
                continue;
            at = put_pair(at, name, value, 0, &limits);
            if (at == NULL)
                return NULL;
        }
    }
    if (record->task != NULL) {
        if (at >= buffer_end)
            return NULL;
        memcpy(at, ",\"task_name\":", 13);
        at = put_str(at + 13, record->task);
    }
    return at;
}

/* ---- the way into the pipe ---------------------------------------------------------- */

/* Send a record while the lock is held. No Python code runs before the write; it may
   after a write that the pipe did not take. LEFT: nothing was changed. */
static int send_locked(PyObject *transport, const Fields *record)
{
    int64_t seq, last, second, offset, next_check, fd, open_bytes;
    size_t text;
    PyObject *delivery = SLOT(transport, T.delivery);
    PyObject *start = SLOT(transport, T.start), *parts = SLOT(transport, T.level_parts);
    const double *latest = cell_of(SLOT(transport, T.latest));
    PyObject *process_fields = NULL;
    refused = LEAVE;
    if (latest != NULL && *latest < 0) {
        process_fields = SLOT(transport, T.process_fields);
        if (process_fields == NULL || !PyDict_CheckExact(process_fields)
            || PyDict_GET_SIZE(process_fields) == 0)
            return LEFT; /* before the first record */
    }
    if (latest == NULL || *latest == 0 || delivery == NULL
        || Py_TYPE(delivery) != delivery_type || SLOT(transport, T.busy) != Py_False
        || SLOT(transport, T.has_more) != Py_False || start == NULL
        || !PyBytes_CheckExact(start) || parts == NULL || !PyDict_Check(parts))
        return LEFT;
    PyObject *resend = SLOT(delivery, D.resend);
    if (resend == NULL || Py_TYPE(resend) != resend_type
        || !slot_number(transport, T.seq, &seq) || !slot_number(transport, T.last, &last)
        || !slot_number(transport, T.second_ns, &second)
        || !slot_number(delivery, D.offset, &offset)
        || !slot_number(delivery, D.next_check, &next_check)
        || !slot_number(delivery, D.fd, &fd)
        || !slot_number(resend, R.open_bytes, &open_bytes))
        return LEFT;
    PyObject *lines = SLOT(resend, R.open_lines);
    PyObject *level = member(level_names, record->level);
    PyObject *part = level == NULL ? NULL : member(parts, level);
    int64_t monotonic = monotonic_ns();
    if (lines == NULL || !PyList_CheckExact(lines) || part == NULL
        || !PyBytes_CheckExact(part) || fd < 0 || monotonic > next_check)
        return LEFT;
    int64_t now = monotonic + offset;
    if (now <= last)
        now = last + 1;
    int64_t fraction = now - second;
    if (fraction < 0 || fraction >= SECOND)
        return LEFT;

    char *at = buffer;
    memcpy(at, PyBytes_AS_STRING(start), (size_t)PyBytes_GET_SIZE(start));
    at = put_nine_digits(at + PyBytes_GET_SIZE(start), (uint32_t)fraction);
    memcpy(at, PyBytes_AS_STRING(part), (size_t)PyBytes_GET_SIZE(part));
    at = put_signed(at + PyBytes_GET_SIZE(part), seq + 1);
    *at++ = ',';
    char *body = at;
    at = put_fields(at, record, process_fields, &text);
    if (at == NULL)
        return LEFT;
    refused = LEAVE;
    if (at - body - (ptrdiff_t)text > MOST_VALUES)
        return LEFT; /* Python counts what is in it */
    *at++ = '\n';
    Py_ssize_t size = at - buffer;
    if (size > MOST_BYTES || open_bytes + size > CHECK_BYTES)
        return LEFT;

    PyObject *line = PyBytes_FromStringAndSize(buffer, size);
    PyObject *new_seq = PyLong_FromLongLong(seq + 1), *new_last = PyLong_FromLongLong(now);
    PyObject *new_bytes = PyLong_FromLongLong(open_bytes + size);
    if (line == NULL || new_seq == NULL || new_last == NULL || new_bytes == NULL
        || PyList_Append(lines, line) < 0) {
        PyErr_Clear();
        Py_XDECREF(line);
        Py_XDECREF(new_seq);
        Py_XDECREF(new_last);
        Py_XDECREF(new_bytes);
        return LEFT;
    }
    store(transport, T.last, new_last);
    store(transport, T.seq, new_seq);
    store(resend, R.open_bytes, new_bytes);
    sent_count++;
    ssize_t done = write((int)fd, PyBytes_AS_STRING(line), (size_t)size);
    if (done == size) {
        Py_DECREF(line);
        return SENT;
    }
    PyObject *finished = PyObject_CallMethod(transport, "_finish", "OLn", line,
                                             (long long)seq + 1, done < 0 ? 0 : done);
    Py_DECREF(line);
    if (finished == NULL)
        return FAILED;
    Py_DECREF(finished);
    return FINISHED;
}

/* A character at an end of a text; 0 if it has none, or is no text. */
static inline Py_UCS4 end_of(PyObject *text, int last)
{
    Py_ssize_t length = PyUnicode_CheckExact(text) ? PyUnicode_GET_LENGTH(text) : 0;
    return length == 0 ? 0 : PyUnicode_READ_CHAR(text, last ? length - 1 : 0);
}

/* Whether all of the message may be JSON, in which Python replaces secrets. A `%s` at an
   end stands for an argument. */
static inline int may_be_json(const Fields *record)
{
    Py_UCS4 first = end_of(record->message, 0);
    if (first != '{' && first != '[' && (first != '%' || record->arguments == NULL))
        return 0;
    Py_UCS4 last = end_of(record->message, 1);
    if (record->arguments != NULL) {
        Py_ssize_t count = PyTuple_GET_SIZE(record->arguments);
        if (first == '%' && count > 0)
            first = end_of(PyTuple_GET_ITEM(record->arguments, 0), 0);
        if (last == 's' && count > 0)
            last = end_of(PyTuple_GET_ITEM(record->arguments, count - 1), 1);
    }
    int ends = last == '}' || last == ']' || last <= ' ';
    return ends && (first == '{' || first == '[');
}

/* Send a record. Arguments that need Python are formatted first, names that are new are
   learned, both with nothing held. LEFT: nothing was sent. */
static int send_record(PyObject *transport, Fields *record)
{
    PyObject *formatted = NULL;
    int result = LEFT;
    if (transport == NULL || Py_TYPE(transport) != transport_type
        || !PyUnicode_CheckExact(record->message))
        goto out;
    if (record->arguments != NULL
        && !formats_easily(record->message, record->arguments)) {
        formatted = PyUnicode_Format(record->message, record->arguments);
        if (formatted == NULL || !PyUnicode_CheckExact(formatted)) {
            PyErr_Clear();
            goto out;
        }
        record->message = formatted;
        record->arguments = NULL;
    }
    if (record->redact && may_be_json(record))
        goto out;
    for (int tries = 0; tries < 100; tries++) {
        PyObject *lock = SLOT(transport, T.lock);
        if (lock == NULL || Py_TYPE(lock) != lock_type)
            break;
        Py_INCREF(lock);
        PyObject *taken = lock_acquire(lock, no_wait, NULL);
        if (taken != Py_True) {
            if (taken == NULL)
                PyErr_Clear();
            Py_XDECREF(taken);
            Py_DECREF(lock);
            break;
        }
        Py_DECREF(taken);
        refused = LEAVE;
        result = send_locked(transport, record);
        Reason reason = refused;
        PyObject *name = result == LEFT && reason == UNKNOWN_NAME
                             ? Py_NewRef(unknown_name) : NULL;
        PyObject *kind, *error, *trace;
        PyErr_Fetch(&kind, &error, &trace);
        PyObject *released = lock_release(lock, no_arguments);
        if (released == NULL)
            PyErr_Clear();
        Py_XDECREF(released);
        PyErr_Restore(kind, error, trace);
        Py_DECREF(lock);
        if (name == NULL)
            break;
        int known = learn_name(name);
        Py_DECREF(name);
        if (!known)
            break;
    }
    if (result == FINISHED) { /* the lock is free: stderr may block */
        PyObject *delivery = PyObject_GetAttr(transport, w_delivery);
        PyObject *notices = delivery ? PyObject_GetAttr(delivery, w_notices) : NULL;
        PyObject *noted = notices ? PyObject_CallMethodNoArgs(notices, w_write) : NULL;
        result = noted == NULL ? FAILED : SENT;
        Py_XDECREF(delivery);
        Py_XDECREF(notices);
        Py_XDECREF(noted);
    }
out:
    Py_XDECREF(formatted);
    if (result == LEFT)
        left_count++;
    return result;
}

#endif
