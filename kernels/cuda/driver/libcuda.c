/* libcuda as trampolines, so that one binary runs with and without a driver.
 *
 * A program linked against the real libcuda.so does not start where there is none,
 * and gorgonia.org/cu ends the process in its init when cuInit fails. This static
 * library takes libcuda's place when linking: each function jumps through a
 * pointer that is looked up in libcuda.so.1 when the program starts, and points at
 * one that answers CUDA_ERROR_NO_DEVICE where the library or the name is missing.
 * The list is what cu v0.9.6 and kernels/cuda call.
 */
#include <dlfcn.h>
#include <stddef.h>

static int no_device(void) { return 100; } /* CUDA_ERROR_NO_DEVICE */

#define SYMBOLS(X) \
  X(cuArray3DCreate_v2) \
  X(cuArray3DGetDescriptor_v2) \
  X(cuArrayCreate_v2) \
  X(cuArrayDestroy) \
  X(cuArrayGetDescriptor_v2) \
  X(cuCtxCreate_v2) \
  X(cuCtxDestroy_v2) \
  X(cuCtxDisablePeerAccess) \
  X(cuCtxEnablePeerAccess) \
  X(cuCtxGetApiVersion) \
  X(cuCtxGetCacheConfig) \
  X(cuCtxGetCurrent) \
  X(cuCtxGetDevice) \
  X(cuCtxGetFlags) \
  X(cuCtxGetLimit) \
  X(cuCtxGetSharedMemConfig) \
  X(cuCtxGetStreamPriorityRange) \
  X(cuCtxPopCurrent_v2) \
  X(cuCtxPushCurrent_v2) \
  X(cuCtxResetPersistingL2Cache) \
  X(cuCtxSetCacheConfig) \
  X(cuCtxSetCurrent) \
  X(cuCtxSetLimit) \
  X(cuCtxSetSharedMemConfig) \
  X(cuCtxSynchronize) \
  X(cuDeviceCanAccessPeer) \
  X(cuDeviceGet) \
  X(cuDeviceGetAttribute) \
  X(cuDeviceGetCount) \
  X(cuDeviceGetName) \
  X(cuDeviceGetP2PAttribute) \
  X(cuDeviceGetUuid_v2) \
  X(cuDevicePrimaryCtxGetState) \
  X(cuDevicePrimaryCtxRelease_v2) \
  X(cuDevicePrimaryCtxReset_v2) \
  X(cuDevicePrimaryCtxRetain) \
  X(cuDevicePrimaryCtxSetFlags_v2) \
  X(cuDeviceTotalMem_v2) \
  X(cuDriverGetVersion) \
  X(cuEventCreate) \
  X(cuEventDestroy_v2) \
  X(cuEventElapsedTime) \
  X(cuEventQuery) \
  X(cuEventRecord) \
  X(cuEventSynchronize) \
  X(cuFuncGetAttribute) \
  X(cuFuncSetAttribute) \
  X(cuFuncSetCacheConfig) \
  X(cuFuncSetSharedMemConfig) \
  X(cuGetErrorName) \
  X(cuGetErrorString) \
  X(cuGraphAddChildGraphNode) \
  X(cuGraphAddDependencies) \
  X(cuGraphAddEmptyNode) \
  X(cuGraphAddHostNode) \
  X(cuGraphAddKernelNode_v2) \
  X(cuGraphAddMemcpyNode) \
  X(cuGraphAddMemsetNode) \
  X(cuGraphClone) \
  X(cuGraphCreate) \
  X(cuGraphDestroy) \
  X(cuGraphDestroyNode) \
  X(cuGraphExecDestroy) \
  X(cuGraphExecUpdate_v2) \
  X(cuGraphGetEdges) \
  X(cuGraphInstantiateWithFlags) \
  X(cuGraphLaunch) \
  X(cuLaunchKernel) \
  X(cuLaunchKernelEx) \
  X(cuLinkAddData_v2) \
  X(cuLinkAddFile_v2) \
  X(cuLinkComplete) \
  X(cuLinkCreate_v2) \
  X(cuLinkDestroy) \
  X(cuMemAdvise) \
  X(cuMemAllocManaged) \
  X(cuMemAllocPitch_v2) \
  X(cuMemAlloc_v2) \
  X(cuMemFreeHost) \
  X(cuMemFree_v2) \
  X(cuMemGetAddressRange_v2) \
  X(cuMemGetInfo_v2) \
  X(cuMemHostAlloc) \
  X(cuMemHostRegister_v2) \
  X(cuMemHostUnregister) \
  X(cuMemPrefetchAsync) \
  X(cuMemcpy) \
  X(cuMemcpy2DAsync_v2) \
  X(cuMemcpy2DUnaligned_v2) \
  X(cuMemcpy2D_v2) \
  X(cuMemcpy3DAsync_v2) \
  X(cuMemcpy3DPeer) \
  X(cuMemcpy3DPeerAsync) \
  X(cuMemcpy3D_v2) \
  X(cuMemcpyAsync) \
  X(cuMemcpyAtoA_v2) \
  X(cuMemcpyAtoD_v2) \
  X(cuMemcpyAtoHAsync_v2) \
  X(cuMemcpyAtoH_v2) \
  X(cuMemcpyDtoA_v2) \
  X(cuMemcpyDtoDAsync_v2) \
  X(cuMemcpyDtoD_v2) \
  X(cuMemcpyDtoHAsync_v2) \
  X(cuMemcpyDtoH_v2) \
  X(cuMemcpyHtoAAsync_v2) \
  X(cuMemcpyHtoA_v2) \
  X(cuMemcpyHtoDAsync_v2) \
  X(cuMemcpyHtoD_v2) \
  X(cuMemcpyPeer) \
  X(cuMemcpyPeerAsync) \
  X(cuMemsetD16Async) \
  X(cuMemsetD16_v2) \
  X(cuMemsetD2D16Async) \
  X(cuMemsetD2D16_v2) \
  X(cuMemsetD2D32Async) \
  X(cuMemsetD2D32_v2) \
  X(cuMemsetD2D8Async) \
  X(cuMemsetD2D8_v2) \
  X(cuMemsetD32Async) \
  X(cuMemsetD32_v2) \
  X(cuMemsetD8Async) \
  X(cuMemsetD8_v2) \
  X(cuModuleGetFunction) \
  X(cuModuleGetGlobal_v2) \
  X(cuModuleGetSurfRef) \
  X(cuModuleGetTexRef) \
  X(cuModuleLoad) \
  X(cuModuleLoadData) \
  X(cuModuleLoadDataEx) \
  X(cuModuleLoadFatBinary) \
  X(cuModuleUnload) \
  X(cuOccupancyMaxActiveBlocksPerMultiprocessor) \
  X(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags) \
  X(cuPointerGetAttribute) \
  X(cuPointerSetAttribute) \
  X(cuStreamAttachMemAsync) \
  X(cuStreamBeginCapture_v2) \
  X(cuStreamCreate) \
  X(cuStreamCreateWithPriority) \
  X(cuStreamDestroy_v2) \
  X(cuStreamEndCapture) \
  X(cuStreamGetFlags) \
  X(cuStreamGetPriority) \
  X(cuStreamQuery) \
  X(cuStreamSynchronize) \
  X(cuStreamWaitEvent) \
  X(cuStreamWaitValue32_v2) \
  X(cuStreamWriteValue32_v2) \
  X(cuSurfRefGetArray) \
  X(cuSurfRefSetArray) \
  X(cuTensorMapEncodeTiled) \
  X(cuTexRefGetAddressMode) \
  X(cuTexRefGetAddress_v2) \
  X(cuTexRefGetArray) \
  X(cuTexRefGetBorderColor) \
  X(cuTexRefGetFilterMode) \
  X(cuTexRefGetFlags) \
  X(cuTexRefGetFormat) \
  X(cuTexRefGetMaxAnisotropy) \
  X(cuTexRefSetAddress2D_v3) \
  X(cuTexRefSetAddressMode) \
  X(cuTexRefSetAddress_v2) \
  X(cuTexRefSetArray) \
  X(cuTexRefSetBorderColor) \
  X(cuTexRefSetFilterMode) \
  X(cuTexRefSetFlags) \
  X(cuTexRefSetFormat) \
  X(cuTexRefSetMaxAnisotropy) \
  X(cuTexRefSetMipmapFilterMode) \
  X(cuTexRefSetMipmapLevelBias) \
  X(cuTexRefSetMipmapLevelClamp)

#if defined(__x86_64__)
#define TRAMPOLINE(name)                                                     \
  void *manta_##name = (void *)no_device;                                    \
  __asm__(".text\n.globl " #name "\n.type " #name ",@function\n" #name ":\n" \
          "\tmovq manta_" #name "(%rip),%r11\n\tjmp *%r11\n");
#elif defined(__aarch64__)
#define TRAMPOLINE(name)                                                     \
  void *manta_##name = (void *)no_device;                                    \
  __asm__(".text\n.globl " #name "\n.type " #name ",%function\n" #name ":\n" \
          "\tadrp x16, manta_" #name "\n"                                     \
          "\tldr x16, [x16, :lo12:manta_" #name "]\n\tbr x16\n");
#else
#error "CUDA builds are for x86-64 and 64-bit Arm"
#endif
SYMBOLS(TRAMPOLINE)

static void *library(void) {
  static void *handle;
  if (!handle) handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  return handle;
}

__attribute__((constructor)) static void look_up(void) {
  void *handle = library(), *symbol;
  if (!handle) return;
#define RESOLVE(name) \
  if ((symbol = dlsym(handle, #name))) manta_##name = symbol;
  SYMBOLS(RESOLVE)
}

/* Always succeeds, for cu's init; the number of devices then tells the truth. */
int cuInit(unsigned flags) {
  int (*real)(unsigned) = NULL;
  if (library()) real = (int (*)(unsigned))dlsym(library(), "cuInit");
  if (real) real(flags);
  return 0;
}
