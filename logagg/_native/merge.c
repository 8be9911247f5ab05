/* The consumer's lines in C: a block that was read, split, merged with others, joined.

   Theory of operation
   -------------------
   The Python code (`logagg._native.blocks`, and the list of bytes that it works on) is the
   reference. What costs most there is one object for each line: made by the split, compared by
   the sort, copied by the join, and freed. A `Lines` has none: it is an immutable sequence of
   bytes whose items are places in blocks that were read, and an item becomes an object only
   when Python code asks for it. For everything that Python does with them a `Lines` and the
   list of its items are the same.

   Invariant: the lines of a `Lines` are plain, and sorted as bytes. Plain means: a whole line
   with the fixed places of `logagg.core.line` up to the seq. Every maker sees to it:

     split    refuses a block unless each of its lines is plain, has the seq after the one
              before, and a later stamp; the caller then takes the Python way for the whole
              block. So nothing that a torn, foreign or hostile line would change is decided
              here.
     gather   refuses a list unless its lines are plain and sorted.
     merge    merges sorted lines: a heap of cursors. Lines are taken from the first one for
              as long as they do not sort after the first of the second one, so runs are
              copied at one comparison a line, and a choice among k costs log k.
     slices, and `+` where the second begins after the first ends (otherwise it gives a list).

   Memory: a `Lines` holds the blocks that its own lines stand in and no others, so what was
   released is freed although later lines of the same merge wait. One waiting line may keep its
   block (256 KiB, or its own length).

   All memory is Python's, and nothing is read outside of a block. No Python code runs while
   `split` fills its scratch memory: only the tuple of blocks, which is made after that, can
   begin a garbage collection. `join` is the only copy of a line on its way from pipe to file. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#ifdef Py_GIL_DISABLED
#error "the scratch memory relies on the GIL"
#endif

/* The fixed places, as in `logagg.core.line`. */
#define PREFIX "{\"timestamp\":\""
#define KEY_START 14
#define KEY_SIZE 30
#define MARK_START (KEY_START + KEY_SIZE - 1)
#define LEVEL_MARK "Z\",\"level\":\""
#define LEVEL_START (MARK_START + 12)
#define SEQ_MARK "\"seq\":"
#define SEQ_WITHIN 400
#define MOST_DIGITS 18

typedef struct {
    const char *at;
    uint32_t size;
    uint32_t block;
} Line;

typedef struct {
    PyObject_VAR_HEAD
    Py_ssize_t bytes;  /* the lines' length in all */
    PyObject *blocks;  /* a tuple of bytes */
    Line lines[];
} Lines;

static PyTypeObject lines_type;

/* ---- one line ----------------------------------------------------------------------------- */

typedef struct {
    const char *names; /* of the last line, from the quote after its level to its seq */
    size_t names_size;
    uint64_t seq;
} Head;

/* Whether a line is plain; fills `head`, which holds the line before, or zeros. */
static int is_plain(const char *line, size_t size, Head *head)
{
    if (size <= LEVEL_START || size > UINT32_MAX || memcmp(line, PREFIX, KEY_START) != 0
        || memcmp(line + MARK_START, LEVEL_MARK, LEVEL_START - MARK_START) != 0)
        return 0;
    const char *end = line + size;
    const char *quote = memchr(line + LEVEL_START, '"', size - LEVEL_START);
    if (quote == NULL)
        return 0;
    const char *digits;
    if (head->names_size > 0 && (size_t)(end - quote) > head->names_size
        && memcmp(quote, head->names, head->names_size) == 0) {
        digits = quote + head->names_size;
    } else {
        const char *last = size < SEQ_WITHIN ? end : line + SEQ_WITHIN;
        const char *found = quote;
        for (;;) {
            if (last - found < 6)
                return 0;
            if (memcmp(found, SEQ_MARK, 6) == 0)
                break;
            found = memchr(found + 1, '"', last - found - 1);
            if (found == NULL)
                return 0;
        }
        digits = found + 6;
        head->names = quote;
        head->names_size = digits - quote;
    }
    if (digits - line > SEQ_WITHIN)
        return 0;
    uint64_t seq = 0;
    const char *at = digits;
    while (at < end && *at >= '0' && *at <= '9' && at - digits <= MOST_DIGITS)
        seq = seq * 10 + (*at++ - '0');
    if (at == digits || at - digits > MOST_DIGITS || at == end || *at != ',')
        return 0;
    head->seq = seq;
    return 1;
}

/* As bytes compare in Python; both are plain. */
static int compare(const Line *one, const Line *two)
{
    int order = memcmp(one->at + KEY_START, two->at + KEY_START, KEY_SIZE);
    if (order != 0)
        return order;
    size_t common = one->size < two->size ? one->size : two->size;
    order = memcmp(one->at, two->at, common);
    return order != 0 ? order : (one->size > two->size) - (one->size < two->size);
}

/* ---- making ------------------------------------------------------------------------------- */

static Lines *new_lines(Py_ssize_t count)
{
    Lines *made = PyObject_NewVar(Lines, &lines_type, count);
    if (made != NULL) {
        made->bytes = 0;
        made->blocks = NULL;
    }
    return made;
}

static void forget(PyObject *self)
{
    Py_XDECREF(((Lines *)self)->blocks);
    PyObject_Free(self);
}

/* Give lines, whose blocks are numbered through the sources, those that they stand in. */
static int take_blocks(Lines *made, PyObject *const *sources, Py_ssize_t source_count)
{
    Py_ssize_t count = 0, used = 0;
    for (Py_ssize_t n = 0; n < source_count; n++)
        count += PyTuple_GET_SIZE(sources[n]);
    uint32_t *places = PyMem_Malloc((count + 1) * sizeof *places);
    if (places == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    memset(places, 0xFF, count * sizeof *places);
    Py_ssize_t size = Py_SIZE(made);
    for (Py_ssize_t n = 0; n < size; n++) {
        Line *line = &made->lines[n];
        if (places[line->block] == UINT32_MAX)
            places[line->block] = (uint32_t)used++;
        line->block = places[line->block];
        made->bytes += line->size;
    }
    made->blocks = PyTuple_New(used);
    if (made->blocks != NULL) {
        Py_ssize_t at = 0;
        for (Py_ssize_t n = 0; n < source_count; n++)
            for (Py_ssize_t m = 0; m < PyTuple_GET_SIZE(sources[n]); m++, at++)
                if (places[at] != UINT32_MAX)
                    PyTuple_SET_ITEM(made->blocks, places[at],
                                     Py_NewRef(PyTuple_GET_ITEM(sources[n], m)));
    }
    PyMem_Free(places);
    return made->blocks != NULL;
}

static PyObject *finish(Lines *made, PyObject *const *sources, Py_ssize_t source_count)
{
    if (made != NULL && !take_blocks(made, sources, source_count))
        Py_CLEAR(made);
    return (PyObject *)made;
}

/* The lines that `split` finds, until their number is known; grows to the largest block. */
static Line *scratch;
static Py_ssize_t scratch_size;

static int scratch_for(Py_ssize_t count)
{
    if (count <= scratch_size)
        return 1;
    Py_ssize_t size = count < 1024 ? 1024 : 2 * count;
    Line *grown = PyMem_Realloc(scratch, size * sizeof *grown);
    if (grown == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    scratch = grown;
    scratch_size = size;
    return 1;
}

/* split(chunk, tail) -> (lines, rest), or None where Python must: see the head. */
static PyObject *split(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_CheckExact(arguments[0]) || !PyBytes_CheckExact(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "two bytes objects are needed");
        return NULL;
    }
    PyObject *chunk = arguments[0], *tail = arguments[1], *first = NULL;
    const char *at = PyBytes_AS_STRING(chunk), *end = at + PyBytes_GET_SIZE(chunk);
    const char *newline = memchr(at, '\n', end - at);
    if (newline == NULL)
        Py_RETURN_NONE;
    Head head = {0};
    Py_ssize_t found = 0, tail_size = PyBytes_GET_SIZE(tail);
    if (tail_size > 0) { /* the line that began in an earlier block becomes one of its own */
        first = PyBytes_FromStringAndSize(NULL, tail_size + (newline - at));
        if (first == NULL || !scratch_for(1)) {
            Py_XDECREF(first);
            return NULL;
        }
        char *text = PyBytes_AS_STRING(first);
        memcpy(text, PyBytes_AS_STRING(tail), tail_size);
        memcpy(text + tail_size, at, newline - at);
        if (!is_plain(text, PyBytes_GET_SIZE(first), &head))
            goto unusual;
        scratch[found++] = (Line){text, (uint32_t)PyBytes_GET_SIZE(first), 1};
        at = newline + 1;
    }
    while (at < end && (newline = memchr(at, '\n', end - at)) != NULL) {
        uint64_t seq = head.seq;
        if (!is_plain(at, newline - at, &head))
            goto unusual;
        if (found > 0
            && (head.seq != seq + 1
                || memcmp(scratch[found - 1].at + KEY_START, at + KEY_START, KEY_SIZE) >= 0))
            goto unusual;
        if (!scratch_for(found + 1)) {
            Py_XDECREF(first);
            return NULL;
        }
        scratch[found++] = (Line){at, (uint32_t)(newline - at), 0};
        at = newline + 1;
    }
    Lines *made = new_lines(found);
    if (made != NULL)
        memcpy(made->lines, scratch, found * sizeof *scratch);
    PyObject *blocks = first != NULL ? PyTuple_Pack(2, chunk, first) : PyTuple_Pack(1, chunk);
    Py_XDECREF(first);
    if (blocks == NULL) {
        Py_XDECREF(made);
        return NULL;
    }
    PyObject *lines = finish(made, &blocks, 1);
    Py_DECREF(blocks);
    return lines == NULL ? NULL : Py_BuildValue("Ny#", lines, at, (Py_ssize_t)(end - at));
unusual:
    Py_XDECREF(first);
    Py_RETURN_NONE;
}

/* gather(list) -> lines, or None: see the head. */
static PyObject *gather(PyObject *module, PyObject *list)
{
    if (!PyList_CheckExact(list)) {
        PyErr_SetString(PyExc_TypeError, "a list is needed");
        return NULL;
    }
    Py_ssize_t count = PyList_GET_SIZE(list);
    PyObject *blocks = PyList_AsTuple(list);
    Lines *made = blocks != NULL ? new_lines(count) : NULL;
    if (made == NULL) {
        Py_XDECREF(blocks);
        return NULL;
    }
    Head head = {0};
    for (Py_ssize_t n = 0; n < count; n++) {
        PyObject *each = PyTuple_GET_ITEM(blocks, n);
        int fits = PyBytes_CheckExact(each)
                   && is_plain(PyBytes_AS_STRING(each), PyBytes_GET_SIZE(each), &head);
        if (fits) {
            made->lines[n] = (Line){PyBytes_AS_STRING(each), (uint32_t)PyBytes_GET_SIZE(each),
                                    (uint32_t)n};
            fits = n == 0 || compare(&made->lines[n - 1], &made->lines[n]) <= 0;
        }
        if (!fits) {
            Py_DECREF(made);
            Py_DECREF(blocks);
            Py_RETURN_NONE;
        }
    }
    PyObject *lines = finish(made, &blocks, 1);
    Py_DECREF(blocks);
    return lines;
}

/* ---- the merge ---------------------------------------------------------------------------- */

typedef struct {
    const Line *at;
    const Line *end;
    uint32_t first_block;
} Cursor;

/* Move a cursor down to its place in the heap below it. */
static void settle(Cursor *heap, Py_ssize_t place, Py_ssize_t count)
{
    Cursor moved = heap[place];
    for (Py_ssize_t child; (child = 2 * place + 1) < count; place = child) {
        if (child + 1 < count && compare(heap[child + 1].at, heap[child].at) < 0)
            child++;
        if (compare(moved.at, heap[child].at) <= 0)
            break;
        heap[place] = heap[child];
    }
    heap[place] = moved;
}

static Line *take(Line *out, Cursor *from, const Line *limit)
{
    do {
        *out = *from->at++;
        out->block += from->first_block;
        out++;
    } while (from->at < from->end && (limit == NULL || compare(from->at, limit) <= 0));
    return out;
}

/* merge(list of lines) -> lines */
static PyObject *merge(PyObject *module, PyObject *runs)
{
    if (!PyList_CheckExact(runs)) {
        PyErr_SetString(PyExc_TypeError, "a list is needed");
        return NULL;
    }
    Py_ssize_t given = PyList_GET_SIZE(runs), count = 0, total = 0;
    Cursor *heap = PyMem_Malloc((given + 1) * sizeof *heap);
    PyObject **blocks = PyMem_Malloc((given + 1) * sizeof *blocks);
    Lines *made = NULL;
    if (heap == NULL || blocks == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    size_t first_block = 0;
    for (Py_ssize_t n = 0; n < given; n++) {
        PyObject *each = PyList_GET_ITEM(runs, n);
        if (!Py_IS_TYPE(each, &lines_type)) {
            PyErr_SetString(PyExc_TypeError, "lines are needed");
            goto done;
        }
        Lines *run = (Lines *)each;
        blocks[n] = run->blocks;
        if (Py_SIZE(run) > 0)
            heap[count++] = (Cursor){run->lines, run->lines + Py_SIZE(run),
                                     (uint32_t)first_block};
        first_block += PyTuple_GET_SIZE(run->blocks);
        total += Py_SIZE(run);
    }
    made = new_lines(total);
    if (made == NULL)
        goto done;
    Line *out = made->lines;
    for (Py_ssize_t place = count / 2; place-- > 0;)
        settle(heap, place, count);
    while (count > 0) {
        const Line *limit = count > 1 ? heap[1].at : NULL;
        if (count > 2 && compare(heap[2].at, limit) < 0)
            limit = heap[2].at;
        out = take(out, &heap[0], limit);
        if (heap[0].at == heap[0].end)
            heap[0] = heap[--count];
        if (count > 1)
            settle(heap, 0, count);
    }
done:;
    PyObject *lines = made == NULL ? NULL : finish(made, blocks, given);
    PyMem_Free(heap);
    PyMem_Free(blocks);
    return lines;
}

/* ---- the sequence ------------------------------------------------------------------------- */

static PyObject *bytes_of(const Line *line)
{
    return PyBytes_FromStringAndSize(line->at, line->size);
}

static Py_ssize_t length(PyObject *self)
{
    return Py_SIZE(self);
}

static PyObject *item(PyObject *self, Py_ssize_t index)
{
    if (index < 0 || index >= Py_SIZE(self)) {
        PyErr_SetString(PyExc_IndexError, "no such line");
        return NULL;
    }
    return bytes_of(&((Lines *)self)->lines[index]);
}

static PyObject *list_of(PyObject *self)
{
    Py_ssize_t count = Py_SIZE(self);
    PyObject *list = PyList_New(count);
    for (Py_ssize_t n = 0; list != NULL && n < count; n++) {
        PyObject *line = bytes_of(&((Lines *)self)->lines[n]);
        if (line == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, n, line);
    }
    return list;
}

static PyObject *iterator(PyObject *self)
{
    PyObject *list = list_of(self);
    if (list == NULL)
        return NULL;
    PyObject *made = PyObject_GetIter(list);
    Py_DECREF(list);
    return made;
}

static PyObject *part(Lines *self, Py_ssize_t start, Py_ssize_t count)
{
    if (count == Py_SIZE(self))
        return Py_NewRef((PyObject *)self);
    Lines *made = new_lines(count);
    if (made == NULL)
        return NULL;
    memcpy(made->lines, self->lines + start, count * sizeof(Line));
    return finish(made, &self->blocks, 1);
}

static PyObject *subscript(PyObject *self, PyObject *key)
{
    Py_ssize_t start, stop, step;
    if (PyIndex_Check(key)) {
        Py_ssize_t index = PyNumber_AsSsize_t(key, PyExc_IndexError);
        if (index == -1 && PyErr_Occurred())
            return NULL;
        return item(self, index < 0 ? index + Py_SIZE(self) : index);
    }
    if (!PySlice_Check(key)) {
        PyErr_SetString(PyExc_TypeError, "an index or a slice is needed");
        return NULL;
    }
    if (PySlice_Unpack(key, &start, &stop, &step) < 0)
        return NULL;
    Py_ssize_t count = PySlice_AdjustIndices(Py_SIZE(self), &start, &stop, step);
    if (step == 1)
        return part((Lines *)self, start, count);
    PyObject *list = list_of(self);
    PyObject *made = list != NULL ? PyObject_GetItem(list, key) : NULL;
    Py_XDECREF(list);
    return made;
}

static PyObject *add(PyObject *left, PyObject *right)
{
    int both = Py_IS_TYPE(left, &lines_type) && Py_IS_TYPE(right, &lines_type);
    if (both && (Py_SIZE(left) == 0 || Py_SIZE(right) == 0))
        return Py_NewRef(Py_SIZE(left) == 0 ? right : left);
    if (both) {
        Lines *one = (Lines *)left, *two = (Lines *)right;
        if (compare(&one->lines[Py_SIZE(one) - 1], &two->lines[0]) <= 0) {
            Lines *made = new_lines(Py_SIZE(one) + Py_SIZE(two));
            if (made == NULL)
                return NULL;
            memcpy(made->lines, one->lines, Py_SIZE(one) * sizeof(Line));
            Line *out = made->lines + Py_SIZE(one);
            uint32_t first_block = (uint32_t)PyTuple_GET_SIZE(one->blocks);
            for (Py_ssize_t n = 0; n < Py_SIZE(two); n++, out++) {
                *out = two->lines[n];
                out->block += first_block;
            }
            PyObject *blocks[] = {one->blocks, two->blocks};
            return finish(made, blocks, 2);
        }
    }
    if (!both && !PyList_CheckExact(left) && !PyList_CheckExact(right))
        Py_RETURN_NOTIMPLEMENTED;
    PyObject *one = PySequence_List(left);
    PyObject *sum = one != NULL ? PySequence_InPlaceConcat(one, right) : NULL;
    Py_XDECREF(one);
    return sum;
}

static PyObject *equal(PyObject *self, PyObject *other, int operation)
{
    int is_lines = Py_IS_TYPE(other, &lines_type);
    if ((operation != Py_EQ && operation != Py_NE) || (!is_lines && !PyList_CheckExact(other)))
        Py_RETURN_NOTIMPLEMENTED;
    PyObject *one = list_of(self), *two = is_lines ? list_of(other) : Py_NewRef(other);
    PyObject *answer = NULL;
    if (one != NULL && two != NULL)
        answer = PyObject_RichCompare(one, two, operation);
    Py_XDECREF(one);
    Py_XDECREF(two);
    return answer;
}

/* join(closing) -> bytes: each line, followed by the closing. */
static PyObject *join(PyObject *object, PyObject *closing)
{
    if (!PyBytes_CheckExact(closing)) {
        PyErr_SetString(PyExc_TypeError, "bytes are needed");
        return NULL;
    }
    Lines *self = (Lines *)object;
    size_t closing_size = PyBytes_GET_SIZE(closing);
    PyObject *made = PyBytes_FromStringAndSize(
        NULL, self->bytes + Py_SIZE(self) * (Py_ssize_t)closing_size);
    if (made == NULL)
        return NULL;
    char *out = PyBytes_AS_STRING(made);
    for (const Line *line = self->lines, *end = line + Py_SIZE(self); line < end; line++) {
        memcpy(out, line->at, line->size);
        memcpy(out + line->size, PyBytes_AS_STRING(closing), closing_size);
        out += line->size + closing_size;
    }
    return made;
}

/* has_level(level) -> bool: whether a line has it, by its place in the line. */
static PyObject *has_level(PyObject *object, PyObject *level)
{
    if (!PyBytes_CheckExact(level)) {
        PyErr_SetString(PyExc_TypeError, "bytes are needed");
        return NULL;
    }
    Lines *self = (Lines *)object;
    size_t size = PyBytes_GET_SIZE(level);
    for (const Line *line = self->lines, *end = line + Py_SIZE(self); line < end; line++)
        if (line->size > LEVEL_START + size && line->at[LEVEL_START + size] == '"'
            && memcmp(line->at + LEVEL_START, PyBytes_AS_STRING(level), size) == 0)
            Py_RETURN_TRUE;
    Py_RETURN_FALSE;
}

static PyObject *size_bytes(PyObject *self, void *unused)
{
    return PyLong_FromSsize_t(((Lines *)self)->bytes);
}

static PyObject *block_bytes(PyObject *self, void *unused)
{
    Py_ssize_t size = 0;
    PyObject *blocks = ((Lines *)self)->blocks;
    for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(blocks); n++)
        size += PyBytes_GET_SIZE(PyTuple_GET_ITEM(blocks, n));
    return PyLong_FromSsize_t(size);
}

static PyMethodDef lines_methods[] = {
    {"has_level", has_level, METH_O, NULL},
    {"join", join, METH_O, NULL},
    {0},
};

static PyGetSetDef lines_attributes[] = {
    {"block_bytes", block_bytes, NULL, "The length of the blocks that it holds.", NULL},
    {"size_bytes", size_bytes, NULL, "The length of the lines together.", NULL},
    {0},
};

static PySequenceMethods lines_sequence = {.sq_length = length, .sq_item = item};
static PyMappingMethods lines_mapping = {.mp_length = length, .mp_subscript = subscript};
static PyNumberMethods lines_number = {.nb_add = add};

static PyTypeObject lines_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "logagg._native.merge.Lines",
    .tp_basicsize = sizeof(Lines),
    .tp_itemsize = sizeof(Line),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "Plain lines in blocks, sorted; to Python code the list of them.",
    .tp_dealloc = forget,
    .tp_as_sequence = &lines_sequence,
    .tp_as_mapping = &lines_mapping,
    .tp_as_number = &lines_number,
    .tp_iter = iterator,
    .tp_richcompare = equal,
    .tp_methods = lines_methods,
    .tp_getset = lines_attributes,
};

static PyMethodDef module_methods[] = {
    {"gather", gather, METH_O, NULL},
    {"merge", merge, METH_O, NULL},
    {"split", (PyCFunction)(void (*)(void))split, METH_FASTCALL, NULL},
    {0},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "logagg._native.merge", "The consumer's lines in C.", -1,
    module_methods};

PyMODINIT_FUNC PyInit_merge(void)
{
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "not in a subinterpreter");
        return NULL;
    }
    if (PyType_Ready(&lines_type) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddObjectRef(module, "Lines", (PyObject *)&lines_type) < 0)
        Py_CLEAR(module);
    return module;
}
