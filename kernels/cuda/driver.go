//go:build cuda

package cuda

/*
#include <cuda.h>
#include <string.h>

typedef struct {
  CUfunction function;
  unsigned x, y, z, threads, shared, arguments, cluster;
} manta_launch;

// Launches n kernels, each with one struct as its argument. With overlap a kernel
// may start before the one before it has ended (programmatic dependent launch).
// With a cluster, so many blocks that follow each other in z stand together.
static CUresult manta_launch_all(CUstream stream, const manta_launch *l, int n, char *arguments, int overlap, int *failed) {
  for (int i = 0; i < n; i++) {
    CUlaunchConfig c = {0};
    CUlaunchAttribute attributes[2] = {{0}};
    void *argument = arguments + l[i].arguments;
    c.gridDimX = l[i].x, c.gridDimY = l[i].y, c.gridDimZ = l[i].z;
    c.blockDimX = l[i].threads, c.blockDimY = 1, c.blockDimZ = 1;
    c.sharedMemBytes = l[i].shared, c.hStream = stream;
    c.attrs = attributes;
    if (overlap) {
      attributes[c.numAttrs].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
      attributes[c.numAttrs++].value.programmaticStreamSerializationAllowed = 1;
    }
    if (l[i].cluster) {
      attributes[c.numAttrs].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
      attributes[c.numAttrs].value.clusterDim.x = attributes[c.numAttrs].value.clusterDim.y = 1;
      attributes[c.numAttrs++].value.clusterDim.z = l[i].cluster;
    }
    CUresult r = cuLaunchKernelEx(&c, l[i].function, &argument, 0);
    if (r != CUDA_SUCCESS) { *failed = i; return r; }
  }
  return CUDA_SUCCESS;
}

static CUresult manta_capture(CUstream stream, const manta_launch *l, int n, char *arguments, int overlap, int *failed, CUgraphExec *exec) {
  CUgraph graph = 0;
  CUresult r = cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), end;
  if (r != CUDA_SUCCESS) return r;
  r = manta_launch_all(stream, l, n, arguments, overlap, failed);
  end = cuStreamEndCapture(stream, &graph);
  if (r == CUDA_SUCCESS) r = end;
  if (r == CUDA_SUCCESS) r = cuGraphInstantiateWithFlags(exec, graph, 0);
  if (graph) cuGraphDestroy(graph);
  return r;
}

// One map of `rank` dimensions, the innermost first, in tiles of `box`.
static CUresult manta_tensor_map(void *out, int type, unsigned rank, unsigned long long at, const cuuint64_t *dimensions, const cuuint64_t *strides, const cuuint32_t *box, int swizzle) {
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  CUtensorMap map; // at a multiple of 64 bytes, which out need not be
  CUresult r = cuTensorMapEncodeTiled(&map, (CUtensorMapDataType)type, rank, (void *)at, dimensions, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzle == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : swizzle ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (r == CUDA_SUCCESS) memcpy(out, &map, sizeof map);
  return r;
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"gorgonia.org/cu"
)

// launch is one kernel of a step; arguments is where its struct begins in the
// step's bytes. It mirrors manta_launch.
type launch struct {
	function                                    uintptr
	x, y, z, threads, shared, argument, cluster uint32
}

func handle(f cu.Function) uintptr { return *(*uintptr)(unsafe.Pointer(&f)) }

func stream(s cu.Stream) C.CUstream { return *(*C.CUstream)(unsafe.Pointer(&s)) }

// result turns a driver's answer into an error that names the call.
func result(r C.CUresult, call string) error {
	if r == C.CUDA_SUCCESS {
		return nil
	}
	var name, text *C.char
	C.cuGetErrorName(r, &name)
	C.cuGetErrorString(r, &text)
	if name == nil {
		return fmt.Errorf("%w: %s: error %d", ErrDevice, call, int(r))
	}
	return fmt.Errorf("%w: %s: %s (%s)", ErrDevice, call, C.GoString(name), C.GoString(text))
}

// launchAll launches the kernels of a step; names gives their names for errors.
func launchAll(s cu.Stream, list []launch, arguments []byte, overlap bool, name func(int) string) error {
	if len(list) == 0 {
		return nil
	}
	var failed C.int
	r := C.manta_launch_all(stream(s), (*C.manta_launch)(unsafe.Pointer(&list[0])), C.int(len(list)), (*C.char)(unsafe.Pointer(&arguments[0])), flag(overlap), &failed)
	return result(r, "launch of "+name(int(failed)))
}

// A graph is a step captured once and launched in one call.
type graph struct{ exec C.CUgraphExec }

func capture(s cu.Stream, list []launch, arguments []byte, overlap bool, name func(int) string) (*graph, error) {
	var failed C.int
	g := &graph{}
	r := C.manta_capture(stream(s), (*C.manta_launch)(unsafe.Pointer(&list[0])), C.int(len(list)), (*C.char)(unsafe.Pointer(&arguments[0])), flag(overlap), &failed, &g.exec)
	return g, result(r, "capture at "+name(int(failed)))
}

func (g *graph) launch(s cu.Stream) error {
	return result(C.cuGraphLaunch(g.exec, stream(s)), "launch of a graph")
}

func (g *graph) destroy() { C.cuGraphExecDestroy(g.exec) }

func flag(b bool) C.int {
	if b {
		return 1
	}
	return 0
}

// allowShared lets a kernel use as much shared memory as a block may have, and
// makes that memory's share of the cache the same for all kernels: a chain whose
// kernels differ in it runs at half speed under programmatic dependent launch.
func allowShared(f cu.Function, limit int) (usable int, err error) {
	function := *(*C.CUfunction)(unsafe.Pointer(&f))
	var static C.int
	if err := result(C.cuFuncGetAttribute(&static, C.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function), "shared size"); err != nil {
		return 0, err
	}
	usable = limit - int(static)
	if err := result(C.cuFuncSetAttribute(function, C.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, C.int(usable)), "shared limit"); err != nil {
		return 0, err
	}
	return usable, result(C.cuFuncSetAttribute(function, C.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100), "carve-out")
}

// codeVersion is the compute capability (×10) that a kernel's code was written for,
// whatever machine runs it.
func codeVersion(f cu.Function) (version int, err error) {
	var v C.int
	err = result(C.cuFuncGetAttribute(&v, C.CU_FUNC_ATTRIBUTE_PTX_VERSION, *(*C.CUfunction)(unsafe.Pointer(&f))), "code version")
	return int(v), err
}

// A tensorMap tells the copy engine how a matrix lies in memory and in which tiles
// it is wanted (cuTensorMapEncodeTiled). It mirrors CUtensorMap.
type tensorMap [16]uint64

// A tiling is what a tensorMap is made from: dimensions, the innermost first, with
// the strides in bytes of all but that one.
type tiling struct {
	at         pointer
	words      bool      // elements of 4 bytes, else of 2
	dimensions [5]uint64 // those that are there
	strides    [4]uint64
	box        [5]uint32
	swizzled   bool // the 128 bytes of a row of the box change places by its number,
	short      bool // or its 64
	float      bool // elements are float32, which the engine may add
}

func (t tiling) encode() (tensorMap, error) {
	var m tensorMap
	kind, rank := C.int(C.CU_TENSOR_MAP_DATA_TYPE_UINT16), C.uint(0) // what the bits mean is the kernel's
	if t.words {
		kind = C.CU_TENSOR_MAP_DATA_TYPE_UINT32
	}
	if t.float {
		kind = C.CU_TENSOR_MAP_DATA_TYPE_FLOAT32
	}
	swizzle := 128 * flag(t.swizzled)
	if t.short {
		swizzle = 64
	}
	for int(rank) < len(t.dimensions) && t.dimensions[rank] > 0 {
		rank++
	}
	r := C.manta_tensor_map(unsafe.Pointer(&m), kind, rank, C.ulonglong(t.at), (*C.cuuint64_t)(unsafe.Pointer(&t.dimensions[0])), (*C.cuuint64_t)(unsafe.Pointer(&t.strides[0])),
		(*C.cuuint32_t)(unsafe.Pointer(&t.box[0])), swizzle)
	return m, result(r, "tensor map")
}

// pinned gives host memory that the device copies from and to at full speed.
func pinned(bytes int) ([]byte, error) {
	var p unsafe.Pointer
	if err := result(C.cuMemHostAlloc(&p, C.size_t(bytes), C.CU_MEMHOSTALLOC_PORTABLE), "pinned memory"); err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(p), bytes), nil
}

func unpin(b []byte) {
	if len(b) > 0 {
		C.cuMemFreeHost(unsafe.Pointer(&b[0]))
	}
}

const (
	sharedLimit     = cu.DeviceAttribute(C.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
	multiprocessors = cu.DeviceAttribute(C.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
)
