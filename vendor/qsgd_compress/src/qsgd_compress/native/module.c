/* The Python side of the kernels: buffers in, numbers out, the GIL released while they run. Lengths are checked here
 * once more, so that no call from Python reaches memory that it does not own; what the bytes of a frame mean is decided
 * in codec.py and frame.py. Limited API of CPython 3.11: one build serves every later version. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "crc32c.h"
#include "huffman.h"
#include "kernels.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "qsgd_compress needs a little-endian machine"
#endif

enum { HEADER_BYTES = 40, LARGEST_COUNT = 1 << 16 };
enum { INTERFACE = 3 }; /* counted up with every change of `methods` or of what they take or give; also in loading.py */
static const int64_t largest_size = (int64_t)1 << 48;

static const Kernels *available[3];
static int available_count;
static const Kernels *kernels;

/* ---- geometry: the lengths that follow from size, bits and bucket; the same as frame.py's Geometry ---- */

typedef struct {
    int64_t size, buckets, scales_bytes, codes_bytes;
    int bits, log2_bucket;
} Geometry;

static int geometry_of(Geometry *g, long long size, int bits, int log2_bucket)
{
    if (size < 0 || size > largest_size || (bits != 4 && bits != 8) || log2_bucket < 7 || log2_bucket > 16) {
        PyErr_SetString(PyExc_ValueError, "no such geometry");
        return 0;
    }
    const int64_t bucket = (int64_t)1 << log2_bucket, group = LANES * (32 / bits);
    *g = (Geometry){.size = size, .bits = bits, .log2_bucket = log2_bucket};
    g->buckets = (size + bucket - 1) / bucket;
    g->scales_bytes = 4 * g->buckets;
    g->codes_bytes = (size + group - 1) / group * GROUP_BYTES;
    return 1;
}

static int is_range(int64_t first, int64_t last, int64_t count)
{
    if (0 <= first && first <= last && last <= count) return 1;
    PyErr_SetString(PyExc_ValueError, "no such range");
    return 0;
}

static int has_length(const Py_buffer *buffer, int64_t bytes)
{
    if (buffer->len == bytes) return 1;
    PyErr_SetString(PyExc_ValueError, "a buffer has another length than its geometry");
    return 0;
}

/* ---- encoding ---- */

PyDoc_STRVAR(allocate_doc, "allocate(length) -> bytes, not yet written; only for `quantise` and `put`, before anyone else sees it.");

static PyObject *allocate(PyObject *module, PyObject *args)
{
    (void)module;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "n", &length)) return NULL;
    if (length < 0) return PyErr_Format(PyExc_ValueError, "a length of %zd", length);
    PyObject *frame = PyBytes_FromStringAndSize(NULL, length);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t huge = 1 << 21;
    if (frame && length >= 2 * (Py_ssize_t)huge) {
        /* Fresh pages of 4 KiB would take a third of the time of encoding; NumPy asks the same for its arrays. */
        const uintptr_t start = (uintptr_t)PyBytes_AsString(frame), from = (start + huge - 1) / huge * huge;
        madvise((void *)from, (start + (uintptr_t)length) / huge * huge - from, MADV_HUGEPAGE);
    }
#endif
    return frame;
}

PyDoc_STRVAR(put_doc, "put(frame, offset, data): write `data` into bytes of `allocate`.");

static PyObject *put(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *frame;
    Py_ssize_t offset;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "Sny*", &frame, &offset, &data)) return NULL;
    const int fits = offset >= 0 && data.len <= PyBytes_Size(frame) && offset <= PyBytes_Size(frame) - data.len;
    if (fits) memcpy(PyBytes_AsString(frame) + offset, data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    if (!fits) return PyErr_Format(PyExc_ValueError, "the data does not fit");
    Py_RETURN_NONE;
}

PyDoc_STRVAR(quantise_doc,
             "quantise(frame, x, bits, log2_bucket, l2, seed, first, last) -> (index, crc)\n\n"
             "Buckets [first, last) of x, float32, into bytes of `allocate` for the whole frame: their scales and codes.\n"
             "`index` is that of the first value that is not finite, or -1; `crc` the CRC-32C of these codes.");

static PyObject *quantise(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *frame;
    Py_buffer x;
    int bits, log2_bucket, l2;
    unsigned long long seed;
    long long first, last;
    if (!PyArg_ParseTuple(args, "Sy*iipKLL", &frame, &x, &bits, &log2_bucket, &l2, &seed, &first, &last)) return NULL;
    Geometry g;
    PyObject *result = NULL;
    if (!geometry_of(&g, x.len / 4, bits, log2_bucket) || !has_length(&x, 4 * g.size)) goto done;
    if (!is_range(first, last, g.buckets)) goto done;
    if (PyBytes_Size(frame) != HEADER_BYTES + g.scales_bytes + g.codes_bytes) {
        PyErr_SetString(PyExc_ValueError, "the frame has another length than its geometry");
        goto done;
    }
    unsigned char *scales = (unsigned char *)PyBytes_AsString(frame) + HEADER_BYTES, *codes = scales + g.scales_bytes;
    const int64_t bucket = (int64_t)1 << log2_bucket, bucket_bytes = bucket * bits / 8;
    const int64_t stride = bucket < 1 << 15 ? (1 << 15) / bucket : 1; /* so many codes are still in the cache for the CRC */
    int64_t wrong = -1, done_bytes = first * bucket_bytes;
    uint32_t crc = 0;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t b = first; b < last && wrong < 0; b += stride) {
        const int64_t stop = b + stride < last ? b + stride : last;
        wrong = kernels->quantise(x.buf, g.size, bits, log2_bucket, l2, seed, b, stop, scales, codes);
        const int64_t end = stop * bucket_bytes < g.codes_bytes ? stop * bucket_bytes : g.codes_bytes;
        const int64_t ready = stop < last ? (end - done_bytes) / CRC32C_STRIDE * CRC32C_STRIDE : end - done_bytes;
        if (wrong < 0) crc = crc32c(crc, codes + done_bytes, (size_t)ready);
        done_bytes += ready;
    }
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("LI", (long long)wrong, (unsigned int)crc);
done:
    PyBuffer_Release(&x);
    return result;
}

/* ---- reading ---- */

PyDoc_STRVAR(check_scales_doc,
             "check_scales(scales, bits) -> (index, crc)\n\n"
             "The first of a frame's scales that no encoder writes, or -1, and the CRC-32C of all of them.");

static PyObject *check_scales(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer scales;
    int bits;
    if (!PyArg_ParseTuple(args, "y*i", &scales, &bits)) return NULL;
    if (scales.len % 4 || (bits != 4 && bits != 8)) {
        PyBuffer_Release(&scales);
        return PyErr_Format(PyExc_ValueError, "no such scales");
    }
    const uint32_t largest = bits == 4 ? 0x7E124924 : 0x7C010203; /* `top` of README.md */
    const unsigned char *at = scales.buf;
    int64_t wrong = -1;
    uint32_t crc;
    Py_BEGIN_ALLOW_THREADS
    crc = crc32c(0, at, (size_t)scales.len);
    for (int64_t i = 0; i < scales.len / 4 && wrong < 0; i++) {
        uint32_t scale; /* as bits: what is negative or NaN lies above the largest */
        memcpy(&scale, at + 4 * i, 4);
        if (scale > largest) wrong = i;
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&scales);
    return Py_BuildValue("LI", (long long)wrong, (unsigned int)crc);
}

PyDoc_STRVAR(check_doc,
             "check(codes, size, bits, first, last) -> (group, crc)\n\n"
             "Looks at groups [first, last) of a frame's codes: the first that holds a code that no encoder writes (the\n"
             "reserved one, or after the last value another than zero's), or -1; and the CRC-32C of these groups.");

/* Whether the codes after the last value are zero's. */
static int is_padded(const unsigned char *codes, const Geometry *g)
{
    const int64_t group = LANES * (32 / g->bits), used = g->size % group;
    const unsigned char *words = codes + g->codes_bytes - GROUP_BYTES;
    for (int64_t e = used ? used : group; e < group; e++) {
        uint32_t word;
        memcpy(&word, words + 4 * (e % LANES), 4);
        if ((word >> (g->bits * (e / LANES)) & ((1u << g->bits) - 1)) != (1u << (g->bits - 1)) - 1) return 0;
    }
    return 1;
}

enum { LOOK_GROUPS = 1 << 16 }; /* 4 MiB: rarely is one looked at again */

static PyObject *check(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer codes;
    long long size, first, last;
    int bits;
    if (!PyArg_ParseTuple(args, "y*LiLL", &codes, &size, &bits, &first, &last)) return NULL;
    Geometry g;
    PyObject *result = NULL;
    if (!geometry_of(&g, size, bits, 7) || !has_length(&codes, g.codes_bytes)) goto done;
    const int64_t groups = g.codes_bytes / GROUP_BYTES;
    if (!is_range(first, last, groups)) goto done;
    const int64_t stride = crc32c_can_look() ? LOOK_GROUPS : 2 * CRC32C_STRIDE / GROUP_BYTES; /* read once, for both */
    int64_t wrong = -1;
    uint32_t crc = 0;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t at = first; at < last; at += stride) {
        const int64_t stop = at + stride < last ? at + stride : last;
        const unsigned char *words = (const unsigned char *)codes.buf + at * GROUP_BYTES;
        const size_t length = (size_t)(stop - at) * GROUP_BYTES;
        int suspect = 1;
        crc = crc32c_can_look() ? crc32c_look(crc, words, length, bits, &suspect) : crc32c(crc, words, length);
        if (suspect && wrong < 0) wrong = kernels->find_reserved(codes.buf, bits, at, stop);
    }
    if (wrong < 0 && first < last && last == groups && !is_padded(codes.buf, &g)) wrong = groups - 1;
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("LI", (long long)wrong, (unsigned int)crc);
done:
    PyBuffer_Release(&codes);
    return result;
}

/* A frame of Python's (scales, codes, bits, log2_bucket, weight) for `size` values; the two buffers are the caller's to
 * release. */
static int frame_of(PyObject *tuple, int64_t size, Frame *frame, Py_buffer *scales, Py_buffer *codes)
{
    if (!PyTuple_Check(tuple)) {
        PyErr_SetString(PyExc_TypeError, "a frame must be a tuple");
        return 0;
    }
    if (!PyArg_ParseTuple(tuple, "y*y*iid", scales, codes, &frame->bits, &frame->log2_bucket, &frame->weight)) return 0;
    frame->scales = scales->buf;
    frame->codes = codes->buf;
    Geometry g;
    if (geometry_of(&g, size, frame->bits, frame->log2_bucket) && has_length(scales, g.scales_bytes) &&
        has_length(codes, g.codes_bytes))
        return 1;
    PyBuffer_Release(scales);
    PyBuffer_Release(codes);
    return 0;
}

/* A range of values that starts with a block and ends with one, or with the last value. */
static int is_range_of_blocks(int64_t start, int64_t stop, int64_t size)
{
    if (start % BLOCK == 0 && (stop % BLOCK == 0 || stop == size)) return is_range(start, stop, size);
    PyErr_SetString(PyExc_ValueError, "a range must start and end with a block");
    return 0;
}

PyDoc_STRVAR(decode_doc,
             "decode(frame, out, start, stop)\n\n"
             "Values [start, stop) of a checked frame (scales, codes, bits, log2_bucket, 1.0) into out, float32.");

static PyObject *decode(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *tuple;
    Py_buffer out, scales, codes;
    long long start, stop;
    if (!PyArg_ParseTuple(args, "O!w*LL", &PyTuple_Type, &tuple, &out, &start, &stop)) return NULL;
    Frame frame;
    int ok = is_range_of_blocks(start, stop, out.len / 4) && frame_of(tuple, out.len / 4, &frame, &scales, &codes);
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        kernels->decode(&frame, out.buf, start, stop);
        Py_END_ALLOW_THREADS
        PyBuffer_Release(&scales);
        PyBuffer_Release(&codes);
    }
    PyBuffer_Release(&out);
    if (!ok) return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(add_doc,
             "add(frames, acc, start, stop)\n\n"
             "acc[start:stop] += what the checked frames (scales, codes, bits, log2_bucket, weight) hold there, in order.");

static PyObject *add(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *tuple;
    Py_buffer acc;
    long long start, stop;
    if (!PyArg_ParseTuple(args, "O!w*LL", &PyTuple_Type, &tuple, &acc, &start, &stop)) return NULL;
    const Py_ssize_t count = PyTuple_Size(tuple);
    Frame *frames = PyMem_Calloc((size_t)count + 1, sizeof(Frame));
    Py_buffer *buffers = PyMem_Calloc(2 * (size_t)count + 1, sizeof(Py_buffer));
    Py_ssize_t opened = 0;
    int ok = 0;
    if (!frames || !buffers) {
        PyErr_NoMemory();
        goto done;
    }
    if (count > LARGEST_COUNT) {
        PyErr_SetString(PyExc_ValueError, "too many frames at once");
        goto done;
    }
    if (!is_range_of_blocks(start, stop, acc.len / 4)) goto done;
    for (; opened < count; opened++) {
        PyObject *item = PyTuple_GetItem(tuple, opened);
        if (!frame_of(item, acc.len / 4, frames + opened, buffers + 2 * opened, buffers + 2 * opened + 1)) goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    kernels->add(frames, (int)count, acc.buf, start, stop);
    Py_END_ALLOW_THREADS
    ok = 1;
done:
    for (Py_ssize_t i = 0; i < 2 * opened; i++) PyBuffer_Release(buffers + i);
    PyMem_Free(frames);
    PyMem_Free(buffers);
    PyBuffer_Release(&acc);
    if (!ok) return NULL;
    Py_RETURN_NONE;
}

/* ---- entropy coding ---- */

PyDoc_STRVAR(compress_doc, "compress(codes, bits) -> one zstd frame of whole groups, at most 2**31 bytes.");

static PyObject *compress(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer codes;
    int bits;
    if (!PyArg_ParseTuple(args, "y*i", &codes, &bits)) return NULL;
    PyObject *frame = NULL;
    unsigned char *room = NULL;
    if (codes.len % GROUP_BYTES || codes.len > (Py_ssize_t)1 << 31 || (bits != 4 && bits != 8)) {
        PyErr_SetString(PyExc_ValueError, "no such codes");
        goto done;
    }
    room = PyMem_Malloc(zstd_bound((size_t)codes.len));
    if (!room) {
        PyErr_NoMemory();
        goto done;
    }
    size_t length;
    Py_BEGIN_ALLOW_THREADS
    length = zstd_frame(codes.buf, (size_t)codes.len, bits == 4, room);
    Py_END_ALLOW_THREADS
    frame = PyBytes_FromStringAndSize((const char *)room, (Py_ssize_t)length);
done:
    PyMem_Free(room);
    PyBuffer_Release(&codes);
    return frame;
}

PyDoc_STRVAR(separate_doc, "separate(codes): the codes of 4 bits that a zstd frame held, back into words, in place.");

static PyObject *separate_codes(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer codes;
    if (!PyArg_ParseTuple(args, "w*", &codes)) return NULL;
    const int whole = codes.len % GROUP_BYTES == 0;
    if (whole) {
        Py_BEGIN_ALLOW_THREADS
        separate(codes.buf, (size_t)codes.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&codes);
    if (!whole) return PyErr_Format(PyExc_ValueError, "no whole groups");
    Py_RETURN_NONE;
}

/* ---- checksums ---- */

PyDoc_STRVAR(crc32c_doc, "crc32c(data, crc=0, form=0) -> int\n\n"
                         "`crc` is of what stands before; `form` 1 does without carry-less multiplication, 2 without the\n"
                         "processor's own instruction too.");

static PyObject *crc32c_of(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer data;
    unsigned int before = 0;
    int form = CRC32C_FOLDING;
    if (!PyArg_ParseTuple(args, "y*|Ii", &data, &before, &form)) return NULL;
    uint32_t crc;
    Py_BEGIN_ALLOW_THREADS
    crc = crc32c_form(form, before, data.buf, (size_t)data.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(crc);
}

PyDoc_STRVAR(combine_doc, "combine(first, second, second_length) -> the CRC-32C of two pieces in a row.");

static PyObject *combine(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned int first, second;
    unsigned long long length;
    if (!PyArg_ParseTuple(args, "IIK", &first, &second, &length)) return NULL;
    return PyLong_FromUnsignedLong(crc32c_combine(first, second, length));
}

/* ---- instruction sets ---- */

PyDoc_STRVAR(instruction_sets_doc, "instruction_sets() -> the names of those that this processor has, best last.");

static PyObject *instruction_sets(PyObject *module, PyObject *args)
{
    (void)module;
    (void)args;
    PyObject *names = PyTuple_New(available_count);
    for (int i = 0; names && i < available_count; i++)
        PyTuple_SetItem(names, i, PyUnicode_FromString(available[i]->name));
    return names;
}

PyDoc_STRVAR(use_doc, "use(name): compute with another instruction set from now on, in this process; for tests.");

static PyObject *use(PyObject *module, PyObject *args)
{
    (void)module;
    const char *name;
    if (!PyArg_ParseTuple(args, "s", &name)) return NULL;
    for (int i = 0; i < available_count; i++)
        if (!strcmp(available[i]->name, name)) {
            kernels = available[i];
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "this processor has no %s", name);
}

static PyMethodDef methods[] = {
    {"add", add, METH_VARARGS, add_doc},
    {"allocate", allocate, METH_VARARGS, allocate_doc},
    {"check", check, METH_VARARGS, check_doc},
    {"check_scales", check_scales, METH_VARARGS, check_scales_doc},
    {"compress", compress, METH_VARARGS, compress_doc},
    {"combine", combine, METH_VARARGS, combine_doc},
    {"crc32c", crc32c_of, METH_VARARGS, crc32c_doc},
    {"decode", decode, METH_VARARGS, decode_doc},
    {"instruction_sets", instruction_sets, METH_NOARGS, instruction_sets_doc},
    {"put", put, METH_VARARGS, put_doc},
    {"quantise", quantise, METH_VARARGS, quantise_doc},
    {"separate", separate_codes, METH_VARARGS, separate_doc},
    {"use", use, METH_VARARGS, use_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", "Kernels in C of qsgd_compress.", -1, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    crc32c_prepare();
    available_count = 0;
    available[available_count++] = &kernels_baseline;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) available[available_count++] = &kernels_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        available[available_count++] = &kernels_avx512;
#endif
    kernels = available[available_count - 1];
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "INTERFACE", INTERFACE)) Py_CLEAR(module);
    return module;
}
