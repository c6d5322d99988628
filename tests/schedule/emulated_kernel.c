// A program around one kernel, for another machine: reads its arguments, runs it, writes them back.
//
// Each argument on standard input, and after the run on standard output: dtype code, bits, rank, (int32 each),
// the shape (int64 each), then the elements. An argument ends where an unmapped page begins (up to 63 bytes
// earlier, since it starts at a multiple of 64), so what is read or written past its end is found out.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <tvm/ffi/c_api.h>
#include <tvm/runtime/c_backend_api.h>

enum { PAGE = 65536, ALIGNMENT = 64, MOST = 32, MOST_RANK = 8, CANARY = 0x5A, PARALLEL_TASKS = 2 };

int __tvm_ffi_main(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result);

static void fail(const char *why) {
    fprintf(stderr, "emulated_kernel: %s\n", why);
    exit(3);
}

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) {
    fprintf(stderr, "%s: %s\n", kind, message);
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    fprintf(stderr, "%s: ", kind);
    for (int i = 0; i < count; i++) fputs(parts[i] ? parts[i] : "", stderr);
    fputc('\n', stderr);
}

// Tasks run one after the other: what they write may not depend on each other.
int TVMBackendParallelLaunch(FTVMParallelLambda task, void *closure, int tasks) {
    TVMParallelGroupEnv group = {NULL, tasks ? tasks : PARALLEL_TASKS};
    for (int i = 0; i < group.num_task; i++) {
        if (task(i, &group, closure)) return -1;
    }
    return 0;
}

int TVMBackendParallelBarrier(int task, TVMParallelGroupEnv *group) {
    fail("the kernel waits for its other tasks, which run later here");
    return -1;
}

void *TVMBackendAllocWorkspace(int device, int id, uint64_t size, int code, int bits) {
    return aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

int TVMBackendFreeWorkspace(int device, int id, void *memory) {
    free(memory);
    return 0;
}

// What TVM's loader would fill in.
void *__TVMBackendParallelLaunch = TVMBackendParallelLaunch;
void *__TVMBackendParallelBarrier = TVMBackendParallelBarrier;
void *__TVMBackendAllocWorkspace = TVMBackendAllocWorkspace;
void *__TVMBackendFreeWorkspace = TVMBackendFreeWorkspace;
void *__TVMFFIErrorSetRaisedFromCStr = TVMFFIErrorSetRaisedFromCStr;

static int get(void *to, size_t size) { return fread(to, 1, size, stdin) == size; }
static void put(const void *from, size_t size) {
    if (fwrite(from, 1, size, stdout) != size) fail("cannot write");
}

typedef struct {
    int32_t head[3];  // dtype code, bits, rank
    int64_t shape[MOST_RANK], strides[MOST_RANK];
    size_t size, slack;  // bytes; slack lies between the end and the unmapped page
    unsigned char *data;
    DLTensor tensor;
} Argument;

static int read_argument(Argument *argument) {
    if (!get(argument->head, sizeof argument->head)) return 0;
    int rank = argument->head[2];
    if (rank > MOST_RANK || !get(argument->shape, rank * sizeof(int64_t))) fail("a broken argument");
    argument->size = argument->head[1] / 8;
    for (int i = rank - 1; i >= 0; i--) {
        argument->strides[i] = i == rank - 1 ? 1 : argument->strides[i + 1] * argument->shape[i + 1];
        argument->size *= argument->shape[i];
    }
    size_t pages = (argument->size + PAGE - 1) / PAGE * PAGE;
    unsigned char *memory =
        mmap(NULL, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory + pages, PAGE, PROT_NONE)) fail("out of memory");
    argument->slack = (pages - argument->size) % ALIGNMENT;
    argument->data = memory + pages - argument->size - argument->slack;
    memset(memory, CANARY, pages);
    if (!get(argument->data, argument->size)) fail("a broken argument");
    DLTensor tensor = {argument->data, {kDLCPU, 0}, rank, {argument->head[0], argument->head[1], 1},
                       argument->shape, argument->strides, 0};
    argument->tensor = tensor;
    return 1;
}

static void write_argument(const Argument *argument) {
    for (size_t i = 0; i < argument->slack; i++) {
        if (argument->data[argument->size + i] != CANARY) fail("the kernel wrote past the end of an argument");
    }
    put(argument->head, sizeof argument->head);
    put(argument->shape, argument->head[2] * sizeof(int64_t));
    put(argument->data, argument->size);
}

int main(void) {
    static Argument arguments[MOST];
    TVMFFIAny given[MOST], result = {0};
    int count = 0;
    while (count < MOST && read_argument(&arguments[count])) {
        TVMFFIAny any = {.type_index = kTVMFFIDLTensorPtr, .v_ptr = &arguments[count].tensor};
        given[count++] = any;
    }
    if (__tvm_ffi_main(NULL, given, count, &result)) return 4;
    for (int i = 0; i < count; i++) write_argument(&arguments[i]);
    return fflush(stdout) ? 3 : 0;
}
