/* JSON for the values of a record, byte for byte as orjson writes it.

   Only what is plain is written here: exact `str`, `int` of 64 bits, `float` that is
   finite and needs no exponent, `bool`, `None`, and `dict`, `list`, `tuple` of these. For
   anything else `put_value` returns LEAVE, and the caller lets the Python code make the
   whole line. No Python code runs in here, no object that the garbage collector tracks is
   made, and so nothing can come between two bytes.

   Everything goes into one static buffer. A function that writes gets the place to write
   at and returns the end of its text, or NULL and a reason in `refused`. */

#ifndef LOGAGG_JSON_H
#define LOGAGG_JSON_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define BUFFER_BYTES (160 * 1024)
#define MOST_BYTES (64 * 1024) /* of a line; a longer one is Python's */
#define MARGIN 1024            /* for what is written without a check of its own */
#define MOST_LEVELS 16
#define MOST_VALUES 10000 /* logagg.core.encode.MAX_VALUES */

static char buffer[BUFFER_BYTES];
static char *const buffer_end = buffer + BUFFER_BYTES - MARGIN;

typedef enum { WRITTEN, LEAVE, UNKNOWN_NAME } Reason;
static Reason refused;
static PyObject *unknown_name; /* borrowed; with UNKNOWN_NAME */

/* ---- numbers ------------------------------------------------------------------------ */

static const char PAIRS[] =
    "00010203040506070809101112131415161718192021222324252627282930313233343536373839"
    "40414243444546474849505152535455565758596061626364656667686970717273747576777879"
    "8081828384858687888990919293949596979899";

static inline char *put_unsigned(char *at, uint64_t number)
{
    char digits[24];
    int first = 24;
    while (number >= 100) {
        unsigned pair = (unsigned)(number % 100);
        number /= 100;
        first -= 2;
        memcpy(digits + first, PAIRS + 2 * pair, 2);
    }
    if (number >= 10) {
        first -= 2;
        memcpy(digits + first, PAIRS + 2 * number, 2);
    } else {
        digits[--first] = (char)('0' + number);
    }
    memcpy(at, digits + first, (size_t)(24 - first));
    return at + 24 - first;
}

static inline char *put_signed(char *at, int64_t number)
{
    if (number < 0) {
        *at++ = '-';
        return put_unsigned(at, 0 - (uint64_t)number);
    }
    return put_unsigned(at, (uint64_t)number);
}

static inline char *put_nine_digits(char *at, uint32_t number)
{
    for (int place = 7; place > 0; place -= 2) {
        memcpy(at + place, PAIRS + 2 * (number % 100), 2);
        number /= 100;
    }
    *at = (char)('0' + number);
    return at + 9;
}

static const double TENS[] = {1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6};

/* A float in the fewest digits that read back as the same one.

   With up to fifteen digits the fewest decimals that divide back to the number are those
   digits. Others are the interpreter's `repr`, which is the same text as long as it has
   no exponent. */
static char *put_float(char *at, double number)
{
    double size = fabs(number);
    if (size >= 1e-3 && size < 1e9) {
        for (int decimals = 0; decimals <= 6; decimals++) {
            uint64_t whole = (uint64_t)(size * TENS[decimals] + 0.5);
            if ((double)whole / TENS[decimals] != size)
                continue;
            uint64_t unit = (uint64_t)TENS[decimals];
            uint64_t rest = whole % unit;
            if (number < 0)
                *at++ = '-';
            at = put_unsigned(at, whole / unit);
            *at++ = '.';
            if (decimals == 0) {
                *at++ = '0';
                return at;
            }
            for (int place = decimals - 1; place >= 0; place--) {
                at[place] = (char)('0' + rest % 10);
                rest /= 10;
            }
            return at + decimals;
        }
    }
    if (!isfinite(number)) {
        refused = LEAVE;
        return NULL;
    }
    char *text = PyOS_double_to_string(number, 'r', 0, Py_DTSF_ADD_DOT_0, NULL);
    if (text == NULL) {
        PyErr_Clear();
        refused = LEAVE;
        return NULL;
    }
    size_t length = strlen(text);
    if (memchr(text, 'e', length) != NULL) {
        at = NULL;
        refused = LEAVE;
    } else {
        memcpy(at, text, length);
        at += length;
    }
    PyMem_Free(text);
    return at;
}

/* ---- text --------------------------------------------------------------------------- */

static char *put_escaped(char *at, unsigned char character)
{
    static const char HEX[] = "0123456789abcdef";
    char letter = 0;
    switch (character) {
    case '"': letter = '"'; break;
    case '\\': letter = '\\'; break;
    case '\n': letter = 'n'; break;
    case '\r': letter = 'r'; break;
    case '\t': letter = 't'; break;
    case '\b': letter = 'b'; break;
    case '\f': letter = 'f'; break;
    default: break;
    }
    *at++ = '\\';
    if (letter) {
        *at++ = letter;
        return at;
    }
    memcpy(at, "u00", 3);
    at[3] = HEX[character >> 4];
    at[4] = HEX[character & 15];
    return at + 5;
}

/* UTF-8 as JSON text without its quotes. Writes 6 * length bytes at most, and up to 16
   more that do not count. */
static inline char *put_text(char *at, const char *text, Py_ssize_t length)
{
    const char *end = text + length;
#if defined(__SSE2__)
    const __m128i quote = _mm_set1_epi8('"'), back = _mm_set1_epi8('\\');
    const __m128i control = _mm_set1_epi8(0x1f);
    while (end - text >= 16) {
        __m128i block = _mm_loadu_si128((const __m128i *)text);
        __m128i special = _mm_or_si128(
            _mm_or_si128(_mm_cmpeq_epi8(block, quote), _mm_cmpeq_epi8(block, back)),
            _mm_cmpeq_epi8(_mm_min_epu8(block, control), block));
        _mm_storeu_si128((__m128i *)at, block);
        int found = _mm_movemask_epi8(special);
        if (found == 0) {
            text += 16;
            at += 16;
            continue;
        }
        int plain = __builtin_ctz((unsigned)found);
        text += plain;
        at = put_escaped(at + plain, (unsigned char)*text++);
    }
#else
    const uint64_t ones = 0x0101010101010101u, tops = 0x8080808080808080u;
    while (end - text >= 8) {
        uint64_t block, quote, back, special;
        memcpy(&block, text, 8);
        quote = block ^ (ones * '"');
        back = block ^ (ones * '\\');
        special = ((quote - ones) & ~quote) | ((back - ones) & ~back)
                  | ((block - ones * 0x20) & ~block);
        if (special & tops)
            break; /* the bytes below find the exact one */
        memcpy(at, &block, 8);
        text += 8;
        at += 8;
    }
#endif
    while (text < end) {
        unsigned char character = (unsigned char)*text++;
        if (character < 0x20 || character == '"' || character == '\\')
            at = put_escaped(at, character);
        else
            *at++ = (char)character;
    }
    return at;
}

/* The UTF-8 of a str; NULL where it has none (lone surrogates). */
static inline const char *utf8_of(PyObject *text, Py_ssize_t *length)
{
    if (PyUnicode_IS_COMPACT_ASCII(text)) {
        *length = PyUnicode_GET_LENGTH(text);
        return (const char *)PyUnicode_1BYTE_DATA(text);
    }
    const char *bytes = PyUnicode_AsUTF8AndSize(text, length);
    if (bytes == NULL)
        PyErr_Clear();
    return bytes;
}

/* A str's text without quotes; NULL where there is no room for it. */
static inline char *put_str_text(char *at, PyObject *text)
{
    Py_ssize_t length;
    const char *bytes = utf8_of(text, &length);
    if (bytes == NULL || length > MOST_BYTES || 6 * length >= buffer_end - at) {
        refused = LEAVE;
        return NULL;
    }
    return put_text(at, bytes, length);
}

static inline char *put_str(char *at, PyObject *text)
{
    *at++ = '"';
    at = put_str_text(at, text);
    if (at != NULL)
        *at++ = '"';
    return at;
}

/* ---- names of fields ---------------------------------------------------------------- */

/* The kinds of names; `learn_name` asks for each once. */
enum { PLAIN_NAME, SECRET_NAME, SPECIAL_NAME };

typedef struct {
    PyObject *name; /* NULL: a free place */
    Py_hash_t hash;
    int kind;
    int length;
    char *encoded; /* ,"name": */
} Name;

#define NAME_PLACES 4096 /* a power of two; half of them are used at most */
static Name names[NAME_PLACES];
static int names_known;
static PyObject *classify_name; /* (name) -> (kind, encoded) or None */

static inline Name *find_name(PyObject *name)
{
    Py_hash_t hash = ((PyASCIIObject *)name)->hash;
    if (hash == -1)
        hash = PyObject_Hash(name);
    for (size_t place = (size_t)hash & (NAME_PLACES - 1);;
         place = (place + 1) & (NAME_PLACES - 1)) {
        Name *known = &names[place];
        if (known->name == name)
            return known;
        if (known->name == NULL)
            return NULL;
        if (known->hash == hash && PyUnicode_Compare(known->name, name) == 0)
            return known;
    }
}

/* Ask Python about a name. Returns whether it is known now. Python code runs. */
static int learn_name(PyObject *name)
{
    if (names_known >= NAME_PLACES / 2)
        return 0;
    PyObject *answer = PyObject_CallOneArg(classify_name, name);
    int kind;
    const char *encoded;
    Py_ssize_t length;
    if (answer == NULL || !PyArg_ParseTuple(answer, "iy#", &kind, &encoded, &length)
        || length > 256) {
        PyErr_Clear();
        Py_XDECREF(answer);
        return 0;
    }
    char *kept = PyMem_Malloc((size_t)length);
    /* The call may have come back here and learned it. */
    if (kept == NULL || find_name(name) != NULL) {
        PyMem_Free(kept);
        Py_DECREF(answer);
        return find_name(name) != NULL;
    }
    memcpy(kept, encoded, (size_t)length);
    Py_DECREF(answer);
    Py_hash_t hash = PyObject_Hash(name);
    size_t place = (size_t)hash & (NAME_PLACES - 1);
    while (names[place].name != NULL)
        place = (place + 1) & (NAME_PLACES - 1);
    names[place] = (Name){Py_NewRef(name), hash, kind, (int)length, kept};
    names_known++;
    return 1;
}

/* ---- values ------------------------------------------------------------------------- */

typedef struct {
    int redact;
    int values; /* so many more may be written */
} Limits;

static char *put_value(char *at, PyObject *value, int level, Limits *limits);

/* `,"name":value`. At the top, a name with a meaning of its own is left to Python. */
static inline char *
put_pair(char *at, PyObject *name, PyObject *value, int level, Limits *limits)
{
    if (!PyUnicode_CheckExact(name)) {
        refused = LEAVE;
        return NULL;
    }
    Name *known = find_name(name);
    if (known == NULL) {
        refused = UNKNOWN_NAME;
        unknown_name = name;
        return NULL;
    }
    if ((level == 0 && known->kind == SPECIAL_NAME) || at >= buffer_end) {
        refused = LEAVE;
        return NULL;
    }
    memcpy(at, known->encoded, (size_t)known->length);
    at += known->length;
    if (known->kind == SECRET_NAME && limits->redact) {
        memcpy(at, "\"[redacted]\"", 12);
        return at + 12;
    }
    return put_value(at, value, level, limits);
}

/* Whether a secret's name may stand beside its value instead of before it: then Python
   finds out, in `logagg.core.secrets.scrubbed`. */
static PyObject *word_name, *word_key, *word_value, *word_Value; /* interned */

static inline int may_name_a_secret(PyObject *dict)
{
    if (PyDict_GET_SIZE(dict) >= 8)
        return 0;
    return PyDict_Contains(dict, word_Value) != 0
           || (PyDict_Contains(dict, word_value) != 0
               && (PyDict_Contains(dict, word_name) != 0
                   || PyDict_Contains(dict, word_key) != 0));
}

static inline int may_hold_a_secret(PyObject *element)
{
    if (PyUnicode_CheckExact(element)) { /* perhaps an option, or NAME=value */
        Py_ssize_t length = PyUnicode_GET_LENGTH(element);
        return length > 0
               && (PyUnicode_READ_CHAR(element, 0) == '-'
                   || PyUnicode_FindChar(element, '=', 0, length, 1) >= 0);
    }
    return (PyList_CheckExact(element) || PyTuple_CheckExact(element))
           && PySequence_Fast_GET_SIZE(element) == 2
           && PyUnicode_Check(PySequence_Fast_GET_ITEM(element, 0));
}

static char *put_dict(char *at, PyObject *dict, int level, Limits *limits)
{
    if (limits->redact && may_name_a_secret(dict)) {
        refused = LEAVE;
        return NULL;
    }
    PyObject *name, *value;
    Py_ssize_t position = 0;
    char *start = at;
    while (PyDict_Next(dict, &position, &name, &value)) {
        at = put_pair(at, name, value, level + 1, limits);
        if (at == NULL)
            return NULL;
    }
    if (at == start)
        at++;
    *start = '{'; /* in the place of the first comma */
    *at++ = '}';
    return at;
}

static char *put_list(char *at, PyObject *list, int level, Limits *limits)
{
    Py_ssize_t count = PySequence_Fast_GET_SIZE(list);
    PyObject **items = PySequence_Fast_ITEMS(list);
    *at++ = '[';
    for (Py_ssize_t n = 0; n < count; n++) {
        if (n > 0)
            *at++ = ',';
        if (limits->redact && may_hold_a_secret(items[n])) {
            refused = LEAVE;
            return NULL;
        }
        at = put_value(at, items[n], level + 1, limits);
        if (at == NULL)
            return NULL;
    }
    *at++ = ']';
    return at;
}

static char *put_value(char *at, PyObject *value, int level, Limits *limits)
{
    PyTypeObject *type = Py_TYPE(value);
    if (at >= buffer_end || --limits->values < 0) {
        refused = LEAVE;
        return NULL;
    }
    if (type == &PyUnicode_Type)
        return put_str(at, value);
    if (type == &PyLong_Type) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (!overflow)
            return put_signed(at, number);
    } else if (value == Py_None) {
        memcpy(at, "null", 4);
        return at + 4;
    } else if (value == Py_True) {
        memcpy(at, "true", 4);
        return at + 4;
    } else if (value == Py_False) {
        memcpy(at, "false", 5);
        return at + 5;
    } else if (type == &PyFloat_Type) {
        return put_float(at, PyFloat_AS_DOUBLE(value));
    } else if (level < MOST_LEVELS) {
        if (type == &PyDict_Type)
            return put_dict(at, value, level, limits);
        if (type == &PyList_Type || type == &PyTuple_Type)
            return put_list(at, value, level, limits);
    }
    refused = LEAVE;
    return NULL;
}

#endif
