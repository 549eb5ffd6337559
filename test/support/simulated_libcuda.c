// SPDX-License-Identifier: Apache-2.0
// A libcuda.so.1 without a GPU: hands the calls that we make through ctypes to a callback, with the argument types that
// CUDA declares. A wrong type at the call arrives as a wrong number, as it would on a GPU.
#include <stddef.h>

typedef unsigned long long word;
typedef int (*handler)(const char* name, const word* arguments);

static handler handle;

void set_handler(handler h) { handle = h; }

#define CALL(name, ...)                  \
  word arguments[] = {__VA_ARGS__};      \
  return handle ? handle(name, arguments) : 3  // CUDA_ERROR_NOT_INITIALIZED

int cuGetErrorString(int code, const char** text) {
  *text = code == 700   ? "an illegal memory access was encountered"
          : code == 901 ? "operation failed due to a previous error during capture"
                        : "not one of the errors of this library";
  return 0;
}

int cuStreamBeginCapture_v2(void* stream, int mode) { CALL("cuStreamBeginCapture_v2", (word)stream, mode); }

int cuStreamEndCapture(void* stream, void** graph) {
  *graph = NULL;
  CALL("cuStreamEndCapture", (word)stream, (word)graph);
}

int cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long flags) {
  CALL("cuGraphInstantiateWithFlags", (word)exec, (word)graph, flags);
}

int cuGraphDestroy(void* graph) { CALL("cuGraphDestroy", (word)graph); }

int cuGraphExecDestroy(void* exec) { CALL("cuGraphExecDestroy", (word)exec); }

int cuGraphLaunch(void* exec, void* stream) { CALL("cuGraphLaunch", (word)exec, (word)stream); }

int cuMemcpyHtoDAsync_v2(unsigned long long device, const void* host, size_t size, void* stream) {
  CALL("cuMemcpyHtoDAsync_v2", device, (word)host, size, (word)stream);
}

int cuMemcpyDtoHAsync_v2(void* host, unsigned long long device, size_t size, void* stream) {
  CALL("cuMemcpyDtoHAsync_v2", (word)host, device, size, (word)stream);
}
