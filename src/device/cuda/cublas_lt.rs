//! NVIDIA's cuBLASLt, loaded at run time if it is installed. It is never required.

use std::ffi::c_void;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;

use super::explain;
use crate::device::Stream;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// cuBLASLt on a stream of a GPU.
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    stream: Stream,
}

// SAFETY: any thread may use the library's handles, and several may at once.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

/// `CUBLAS_OP_T`: a transposed operand.
const TRANSPOSED: i32 = 1;

/// `out = x · weightᵀ + bias`, given by device addresses.
pub(crate) struct Product {
    /// `[m, k]`
    pub x: u64,
    /// `[n, k]`
    pub weight: u64,
    /// `[n]`, of `out`'s dtype; 0 for no bias.
    pub bias: u64,
    /// `[m, n]`
    pub out: u64,
    /// bf16 or f16, of `x` and `weight`.
    pub dtype: DType,
    /// The same as `dtype`, or f32.
    pub out_dtype: DType,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Scratch memory for the library: address and bytes.
    pub workspace: (u64, usize),
}

impl CublasLt {
    /// Loads the library, for products on `stream`. It allocates, so not during a graph capture.
    ///
    /// # Errors
    /// The stream is not on a GPU, or the library is not installed.
    pub fn new(stream: &Stream) -> Result<Self> {
        stream.not_capturing("loading cuBLASLt")?;
        bound(stream)?;
        // SAFETY: loading NVIDIA's library has no preconditions.
        if !unsafe { sys::is_culib_present() } {
            return Err(failed(stream, "libcublasLt cannot be loaded"));
        }
        let handle = result::create_handle().map_err(|e| failed(stream, format_args!("{:?}", e.0)))?;
        Ok(Self { handle, stream: stream.clone() })
    }

    /// Enqueues a product on the stream. It allocates no device memory.
    ///
    /// # Safety
    /// The addresses are memory of the stream's device, as large as the shapes require.
    ///
    /// # Errors
    /// The library has no algorithm for the problem, or failed.
    pub(crate) unsafe fn enqueue(&self, product: &Product) -> Result<()> {
        let cuda = bound(&self.stream)?;
        self.stream.count_launch();
        // SAFETY: guaranteed by the caller.
        unsafe { self.matmul(cuda, product) }.map_err(|e| {
            let Product { m, n, k, dtype, out_dtype, .. } = product;
            failed(&self.stream, format_args!("[{m}, {k}] × [{n}, {k}]ᵀ of {dtype} to {out_dtype}: {:?}", e.0))
        })
    }

    /// # Safety
    /// As [`enqueue`](Self::enqueue).
    unsafe fn matmul(&self, cuda: &CudaStream, product: &Product) -> std::result::Result<(), CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let &Product { x, weight, bias, out, dtype, out_dtype, m, n, k, workspace } = product;
        let (float, float_out) = (data_type(dtype), data_type(out_dtype));
        // The library's matrices are column-major: its A is the transposed weight, its B is x, and its result has a
        // column for each row of x.
        let operation = Description::new()?;
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if bias != 0 {
            operation
                .set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let a = Layout::new(float, k, n)?;
        let b = Layout::new(float, k, m)?;
        let c = Layout::new(float_out, n, m)?;
        let preference = Preferences::new()?;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace.1)?;
        for (attribute, address) in [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, weight),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out),
        ] {
            preference.set(attribute, &alignment(address))?;
        }
        let (alpha, beta) = (1.0f32, 0.0f32);
        // SAFETY: all descriptors are alive; alpha and beta are read before the call returns; the rest is guaranteed by
        // the caller.
        unsafe {
            let found = result::get_matmul_algo_heuristic(self.handle, operation.0, a.0, b.0, c.0, c.0, preference.0)?;
            result::matmul(
                self.handle,
                operation.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                weight as *const c_void,
                a.0,
                x as *const c_void,
                b.0,
                out as *const c_void,
                c.0,
                out as *mut c_void,
                c.0,
                &found.algo,
                workspace.0 as *mut c_void,
                workspace.1,
                cuda.cu_stream().cast(),
            )
        }
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // An error cannot be reported from drop.
        // SAFETY: the handle was created by the library, and nothing uses it any more.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn failed(stream: &Stream, reason: impl std::fmt::Display) -> Error {
    Error::Device { device: stream.info().device.clone(), reason: format!("cuBLASLt: {reason}") }
}

/// The CUDA stream, with its context bound to the calling thread.
fn bound(stream: &Stream) -> Result<&CudaStream> {
    let cuda = stream.driver().cuda_stream().ok_or_else(|| failed(stream, "expected a GPU"))?;
    cuda.context().bind_to_thread().map_err(|e| failed(stream, explain(e)))?;
    Ok(&**cuda)
}

/// The largest power of two that divides an address, up to 256, the library's default.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

fn data_type(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        _ => sys::cudaDataType::CUDA_R_32F,
    }
}

/// The operation, computed in f32.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new() -> std::result::Result<Self, CublasError> {
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        result::create_matmul_desc(compute, scale).map(Self)
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> std::result::Result<(), CublasError> {
        // SAFETY: the description is alive; the value is copied.
        unsafe {
            result::set_matmul_desc_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: created in `new`, and nothing uses it any more.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// A column-major matrix with columns of `rows` elements.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(dtype: sys::cudaDataType, rows: usize, columns: usize) -> std::result::Result<Self, CublasError> {
        result::create_matrix_layout(dtype, rows as u64, columns as u64, rows as i64).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: as for `Description`.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// Constraints on the choice of an algorithm.
struct Preferences(sys::cublasLtMatmulPreference_t);

impl Preferences {
    fn new() -> std::result::Result<Self, CublasError> {
        result::create_matmul_pref().map(Self)
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> std::result::Result<(), CublasError> {
        // SAFETY: as for `Description`.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
    }
}

impl Drop for Preferences {
    fn drop(&mut self) {
        // SAFETY: as for `Description`.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
