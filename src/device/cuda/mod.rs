//! A GPU, driven by the CUDA driver, which is loaded at run time.

mod cublas_lt;
mod modules;
mod staging;

pub use cublas_lt::CublasLt;
pub(crate) use cublas_lt::Product;

use std::any::Any;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{
    CudaContext, CudaEvent, CudaGraph, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DriverError, result, sys,
};

use super::driver::{DeviceInfo, Driver, Launch, Mark, Recording};
use super::slice::{Slice, SliceMut};
use super::stream::Stream;
use super::tensor::{Swizzle, TensorMap, TmaBoxes};
use super::variant::ARCHS;
use crate::dtype::DType;
use crate::error::{Error, Result};
use modules::Modules;
use staging::Staging;

/// A number with the same representation on host and device.
pub trait Element {
    const DTYPE: DType;
}

macro_rules! element {
    ($($rust:ty => $dtype:ident),+ $(,)?) => {
        $(impl Element for $rust {
            const DTYPE: DType = DType::$dtype;
        })+
    };
}

element!(f32 => F32, half::bf16 => BF16, half::f16 => F16, i8 => I8, u8 => U8, u32 => U32);

impl Stream {
    /// The number of GPUs; 0 without a driver.
    pub fn cuda_devices() -> usize {
        if driver_library().is_err() || result::init().is_err() {
            return 0;
        }
        CudaContext::device_count().map_or(0, |n| usize::try_from(n).unwrap_or(0))
    }

    /// The GPU with this number, with a stream of its own.
    ///
    /// # Errors
    /// There is no driver or no such GPU, or it is older than Volta.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        let failed = |reason: String| Error::Device { device: format!("cuda:{ordinal}"), reason };
        // cudarc panics if the library is missing; here that is an error value.
        driver_library().map_err(failed)?;
        let context = CudaContext::new(ordinal).map_err(|e| failed(explain(e)))?;
        let stream = context.new_stream().map_err(|e| failed(explain(e)))?;
        Self::from_cudarc(stream)
    }

    /// The caller's own stream. Work is ordered with the caller's work on it.
    ///
    /// # Errors
    /// The GPU is older than Volta, or the driver failed.
    pub fn from_cudarc(stream: Arc<CudaStream>) -> Result<Self> {
        Ok(Self::new(Box::new(Cuda::new(stream)?)))
    }
}

impl<'a> Slice<'a> {
    /// Memory allocated by cudarc, ordered by its own stream: launch there, or make the streams wait for each other.
    pub fn from_cudarc<T: Element>(slice: &'a CudaSlice<T>) -> Self {
        let (address, _guard) = slice.device_ptr(slice.stream());
        Self::new(address, T::DTYPE, slice.len())
    }
}

impl<'a> SliceMut<'a> {
    /// Memory allocated by cudarc, ordered by its own stream: launch there, or make the streams wait for each other.
    pub fn from_cudarc<T: Element>(slice: &'a mut CudaSlice<T>) -> Self {
        let (stream, len) = (Arc::clone(slice.stream()), slice.len());
        let (address, guard) = slice.device_ptr_mut(&stream);
        drop(guard);
        Self::new(address, T::DTYPE, len)
    }
}

/// The entry of [`ARCHS`] whose code a device of this compute capability runs: the newest of its generation that is not
/// newer than the device. Hopper's code (sm_90a) runs on no other device.
fn code_arch(capability: u32) -> Option<u32> {
    let same_generation = |arch: &u32| arch / 10 == capability / 10 && *arch <= capability;
    ARCHS.into_iter().rev().find(same_generation)
}

/// Whether the driver can be loaded; if not, why.
fn driver_library() -> Result<(), String> {
    const NAMES: [&str; 2] = if cfg!(windows) { ["nvcuda.dll", "nvcuda.dll"] } else { ["libcuda.so.1", "libcuda.so"] };
    // SAFETY: loading the NVIDIA driver's library has no preconditions; cudarc loads the same.
    let found = NAMES.iter().any(|name| unsafe { libloading::Library::new(*name) }.is_ok());
    if found { Ok(()) } else { Err(format!("no NVIDIA driver: {} cannot be loaded", NAMES[0])) }
}

/// The driver's own text for an error.
fn explain(error: DriverError) -> String {
    let name = error.error_name().map_or_else(|_| format!("{error:?}"), |name| name.to_string_lossy().into_owned());
    match error.error_string() {
        Ok(text) => format!("{name}: {}", text.to_string_lossy()),
        Err(_) => name,
    }
}

struct Cuda {
    info: DeviceInfo,
    stream: Arc<CudaStream>,
    modules: Modules,
    staging: Staging,
}

impl Cuda {
    fn new(stream: Arc<CudaStream>) -> Result<Self> {
        let context = stream.context();
        let device = format!("cuda:{}", context.ordinal());
        let failed = |e: DriverError| Error::Device { device: device.clone(), reason: explain(e) };
        let (major, minor) = context.compute_capability().map_err(failed)?;
        let capability = u32::try_from(major * 10 + minor).unwrap_or(0);
        let name = context.name().map_err(failed)?;
        let Some(arch) = code_arch(capability) else {
            let reason = format!("{name} is sm_{capability}; this build has code for sm_70 to sm_90");
            return Err(Error::Device { device, reason });
        };
        let sms =
            context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).map_err(failed)?;
        let memory_bytes = context.total_mem().map_err(failed)? as u64;
        let sms = u32::try_from(sms).unwrap_or(1);
        let info = DeviceInfo { device: device.clone(), name, arch, sms, memory_bytes };
        Ok(Self { info, modules: Modules::default(), staging: Staging::new(&stream), stream })
    }

    fn error(&self, what: &str, error: DriverError) -> Error {
        Error::Device { device: self.info.device.clone(), reason: format!("{what}: {}", explain(error)) }
    }

    /// Binds the context to the calling thread.
    fn bind(&self) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(|e| self.error("context", e))
    }
}

impl Driver for Cuda {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// A kernel fault is sticky: the primary context is broken, and this process cannot get another.
    fn fails_for_good(&self) -> bool {
        true
    }

    fn free_bytes(&self) -> Result<u64> {
        let (free, _) = self.stream.context().mem_get_info().map_err(|e| self.error("memory", e))?;
        Ok(free as u64)
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        let size = bytes.max(1);
        // SAFETY: the stream is alive, and the memory is cleared or written before it is read.
        let address = unsafe {
            if self.stream.context().has_async_alloc() {
                result::malloc_async(self.stream.cu_stream(), size)
            } else {
                result::malloc_sync(size)
            }
        };
        address.map_err(|e| {
            let free = self.free_bytes().unwrap_or(0);
            self.error(&format!("{bytes} bytes of memory, of which {free} are free"), e)
        })
    }

    fn release(&self, address: u64, _bytes: usize) {
        // An error cannot be reported here; after a device failure the memory is gone anyway.
        let _ = self.bind().map(|()| {
            // SAFETY: the address came from `allocate` and is freed once; the free is ordered after the stream's work,
            // or waits for it.
            unsafe {
                if self.stream.context().has_async_alloc() {
                    result::free_async(address, self.stream.cu_stream())
                } else {
                    self.stream.synchronize().and_then(|()| result::free_sync(address))
                }
            }
        });
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller's memory has `bytes`, and all-zero bytes are valid in every dtype.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) }
            .map_err(|e| self.error("clearing memory", e))
    }

    fn upload(&self, address: u64, data: &[u8]) -> Result<()> {
        self.bind()?;
        self.staging.upload(address, data).map_err(|e| self.error("upload", e))
    }

    fn download(&self, address: u64, data: &mut [u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `data` is not moved or freed before the stream is done with it.
        unsafe { result::memcpy_dtoh_async(data, address, self.stream.cu_stream()) }
            .and_then(|()| self.stream.synchronize())
            .map_err(|e| self.error("download", e))
    }

    fn allocate_host(&self, bytes: usize) -> Result<*mut u8> {
        self.bind()?;
        // Not write-combined, because the host reads it.
        // SAFETY: zeroed before it is read.
        unsafe {
            let memory = result::malloc_host(bytes.max(1), 0)
                .map_err(|e| self.error(&format!("{bytes} bytes of page-locked memory"), e))?
                .cast::<u8>();
            memory.write_bytes(0, bytes);
            Ok(memory)
        }
    }

    unsafe fn release_host(&self, memory: *mut u8, _bytes: usize) {
        // SAFETY: guaranteed by the caller.
        let _ = self.bind().map(|()| unsafe { result::free_host(memory.cast()) });
    }

    unsafe fn copy_to_host(&self, address: u64, to: *mut u8, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: guaranteed by the caller.
        let copied = unsafe {
            let to = std::slice::from_raw_parts_mut(to, bytes);
            result::memcpy_dtoh_async(to, address, self.stream.cu_stream())
        };
        copied.map_err(|e| self.error("copy to the host", e))
    }

    fn tensor_map(&self, boxes: &TmaBoxes<'_>) -> Result<TensorMap> {
        use sys::CUtensorMapDataType as Type;
        use sys::CUtensorMapSwizzle as Pattern;
        let refused = |reason: String| {
            let reason = format!("tensor map: {reason}");
            Error::Device { device: self.info.device.clone(), reason }
        };
        let &TmaBoxes { address, element_bytes, dims, strides, sides, swizzle } = boxes;
        let element = match element_bytes {
            1 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            2 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT16,
            4 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT32,
            8 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT64,
            bytes => return Err(refused(format!("elements: expected 1, 2, 4 or 8 bytes, found {bytes}"))),
        };
        let rank = dims.len();
        if rank == 0 || strides.len() + 1 != rank || sides.len() != rank {
            let found = format!("{rank} dims, {} strides, {} sides", strides.len(), sides.len());
            return Err(refused(format!("expected one stride fewer than dims and a side for each, found {found}")));
        }
        let pattern = match swizzle {
            Swizzle::None => Pattern::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::Bytes32 => Pattern::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::Bytes64 => Pattern::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::Bytes128 => Pattern::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        self.bind()?;
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let steps = vec![1u32; rank];
        // SAFETY: the arrays have `rank` elements; the driver checks their values and copies them.
        let made = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                element,
                rank as u32,
                address as *mut c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                sides.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                pattern,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        made.result().map_err(|e| refused(format!("{dims:?} in boxes of {sides:?}: {}", explain(e))))?;
        Ok(map.opaque)
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.bind()?;
        let named = |reason: String| {
            let reason = format!("{} ({}): {reason}", launch.variant.name, launch.shape);
            Error::Device { device: self.info.device.clone(), reason }
        };
        let function = self.modules.function(launch.variant, self.info.arch).map_err(named)?;
        let [x, y, z] = launch.grid;
        let mut params = [launch.args.as_ptr().cast::<c_void>().cast_mut()];
        let mut cluster = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: launch.cluster, y: 1, z: 1 },
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.variant.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: function.shared_bytes,
            hStream: self.stream.cu_stream(),
            attrs: &raw mut cluster,
            // Devices before Hopper reject the attribute.
            numAttrs: u32::from(launch.cluster > 1),
        };
        // SAFETY: the kernel's only parameter is its argument struct, which `args` holds; the driver copies it and the
        // attribute before it returns. The rest is guaranteed by the caller.
        let launched = unsafe {
            sys::cuLaunchKernelEx(&config, function.handle, params.as_mut_ptr(), std::ptr::null_mut()).result()
        };
        launched.map_err(|e| named(format!("grid {x} × {y} × {z} in clusters of {}: {}", launch.cluster, explain(e))))
    }

    fn cuda_stream(&self) -> Option<&Arc<CudaStream>> {
        Some(&self.stream)
    }

    fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| self.error("waiting", e))
    }

    fn mark(&self) -> Result<Box<dyn Mark>> {
        let event = self.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        event.map(|event| Box::new(event) as Box<dyn Mark>).map_err(|e| self.error("an event", e))
    }

    fn begin_capture(&self) -> Result<()> {
        // Only calls of this thread can fail the capture; other threads may allocate meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(|e| self.error("capture", e))
    }

    fn end_capture(&self) -> Result<Box<dyn Recording>> {
        let graph = self
            .stream
            .end_capture(sys::CUgraphInstantiate_flags(0))
            .map_err(|e| self.error("capture", e))?
            .ok_or_else(|| Error::Device { device: self.info.device.clone(), reason: "an empty graph".to_owned() })?;
        graph.upload().map_err(|e| self.error("graph upload", e))?;
        Ok(Box::new(Recorded { graph, device: self.info.device.clone() }))
    }
}

impl Mark for CudaEvent {
    fn until(&self, end: &dyn Mark) -> Result<Duration> {
        let failed = |reason: String| Error::Device { device: "cuda".to_owned(), reason: format!("events: {reason}") };
        let end: &dyn Any = end;
        let end = end.downcast_ref::<Self>().ok_or_else(|| failed("of another device".to_owned()))?;
        let milliseconds = self.elapsed_ms(end).map_err(|e| failed(explain(e)))?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

struct Recorded {
    graph: CudaGraph,
    device: String,
}

// SAFETY: the driver requires that one thread at a time uses a graph, not always the same; `Graph` keeps it behind a
// mutex.
unsafe impl Send for Recorded {}

impl Recording for Recorded {
    fn replay(&self) -> Result<()> {
        let failed = |e| Error::Device { device: self.device.clone(), reason: format!("graph replay: {}", explain(e)) };
        self.graph.launch().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_runs_code_of_its_generation() {
        let cases = [(70, 70), (72, 70), (75, 75), (80, 80), (86, 86), (87, 86), (89, 89), (90, 90)];
        for (capability, arch) in cases {
            assert_eq!(code_arch(capability), Some(arch), "sm_{capability}");
        }
        assert_eq!(code_arch(61), None);
        assert_eq!(code_arch(100), None);
    }
}
