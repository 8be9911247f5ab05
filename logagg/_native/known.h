/* What was looked up once and has not changed since.

   Until Python 3.12 every change gives a dictionary a version that no dictionary ever had
   before (PEP 509). So what was found at a version is what is there as long as the
   dictionary has that version, and the dictionary itself keeps alive what it holds: the
   references here are borrowed. From Python 3.13 on there is no version to rely on, each
   is 0, which matches nothing, and everything is looked up anew. Nothing else is
   remembered: a list may have grown, and is looked at each time. */

#ifndef LOGAGG_KNOWN_H
#define LOGAGG_KNOWN_H

#include "given.h"

#define HAS_VERSIONS (PY_VERSION_HEX < 0x030D0000)

static inline uint64_t version_of_dict(PyObject *dict)
{
#if HAS_VERSIONS
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    return ((PyDictObject *)dict)->ma_version_tag;
#pragma GCC diagnostic pop
#else
    (void)dict;
    return 0;
#endif
}

static inline int is_at(PyObject *dict, uint64_t version)
{
    return version != 0 && version_of_dict(dict) == version;
}

/* A member that is asked for again and again under one key, such as a module's global. */
typedef struct {
    uint64_t version;
    PyObject *key, *found;
} Seen;

static inline PyObject *seen_member(Seen *seen, PyObject *dict, PyObject *key)
{
    if (seen->key == key && is_at(dict, seen->version))
        return seen->found;
    seen->found = member(dict, key);
    seen->key = key;
    seen->version = version_of_dict(dict);
    return seen->found;
}

/* Whether the globals by which logging makes its records are as they were at `bind`. */
static int records_are_plain(void)
{
    static uint64_t logging_version, time_version;
    static int plain;
    if (is_at(logging_globals, logging_version) && is_at(time_globals, time_version))
        return plain;
    int reads_ns = has_task_name && PY_VERSION_HEX >= 0x030D0000;
    plain = member(time_globals, reads_ns ? w_time_ns : w_time) == real_time
            && member(logging_globals, w_logThreads) == Py_True
            && member(logging_globals, w_logProcesses) == Py_True
            && member(logging_globals, w_logMultiprocessing) == Py_True
            && (!has_task_name || member(logging_globals, w_logAsyncioTasks) == Py_True);
    logging_version = version_of_dict(logging_globals);
    time_version = version_of_dict(time_globals);
    return plain;
}

/* What a call needs of a logger. Of the level that was asked for last: `enabled`. */
typedef struct {
    uint64_t version, cache_version;
    PyObject *disabled, *cache, *filters, *handlers, *propagate, *parent, *name;
    PyObject *level, *enabled;
} LoggerView;

#define LOGGER_VIEWS 64
static LoggerView logger_views[LOGGER_VIEWS];

/* Of a logger that is called, or of an ancestor. Lasts until a dictionary is changed or
   another logger is looked at. */
static LoggerView *view_of_logger(PyObject *dict, int is_called)
{
    LoggerView *view = &logger_views[((uintptr_t)dict >> 6) & (LOGGER_VIEWS - 1)];
    if (is_at(dict, view->version))
        return view;
    if (is_called || HAS_VERSIONS) {
        view->disabled = member(dict, w_disabled);
        view->cache = member(dict, w__cache);
        view->filters = member(dict, w_filters);
        view->name = member(dict, w_name);
        view->cache_version = 0;
    }
    view->handlers = member(dict, w_handlers);
    view->propagate = member(dict, w_propagate);
    view->parent = member(dict, w_parent);
    view->version = version_of_dict(dict);
    return view;
}

#define LEVELS 5
static PyObject *level_numbers[LEVELS]; /* held */

/* What `isEnabledFor` has found for a level; NULL: it was not asked yet. */
static PyObject *enabled_for(LoggerView *view, PyObject *level)
{
    if (view->cache == NULL || !PyDict_CheckExact(view->cache))
        return NULL;
    if (view->level == level && is_at(view->cache, view->cache_version))
        return view->enabled;
    view->cache_version = 0;
    view->enabled = member(view->cache, level);
    for (int n = 0; n < LEVELS; n++) /* the number of another level may be freed */
        if (level == level_numbers[n]) {
            view->level = level;
            view->cache_version = version_of_dict(view->cache);
        }
    return view->enabled;
}

/* What a call needs of a handler of this package. */
typedef struct {
    uint64_t version;
    PyObject *filters, *level, *transport;
    int redact, is_plain, has_handle;
} HandlerView;

static HandlerView *view_of_handler(PyObject *dict)
{
    static HandlerView view;
    if (is_at(dict, view.version))
        return &view;
    PyObject *redacts = member(dict, w__redact);
    view.filters = member(dict, w_filters);
    view.level = member(dict, w_level);
    view.transport = member(dict, w__transport);
    view.redact = redacts == Py_True;
    view.has_handle = member(dict, w_handle) != NULL;
    view.is_plain = member(dict, w__bare) == Py_True && member(dict, w__contextual) == NULL
                    && member(dict, w_emit) == NULL
                    && (redacts == Py_True || redacts == Py_False);
    view.version = version_of_dict(dict);
    return &view;
}

#endif
