//! The two NVIDIA libraries that the generator calls: NVRTC to compile, and the driver to query the GPU.
//!
//! Both are loaded by path or name when they are needed, and if they are missing that is an error value. cudarc is not
//! used: it searches for NVRTC only by names on the loader's path, which excludes Python's packages and CUDA 13, and it
//! panics if a library or a function is missing.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

use libloading::Library;

use crate::{Arch, Role, messages};

type Status = c_int;
type Program = *mut c_void;

/// The NVRTC library: a CUDA compiler that needs neither a toolkit nor a host compiler.
pub struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    version: (c_int, c_int),
    library_bytes: u64,
    archs: Vec<Arch>,
    /// Keeps the functions above loaded; the last field, so that it is dropped last.
    _library: Library,
}

impl Nvrtc {
    /// Opens the library in `file`.
    ///
    /// # Errors
    /// One line: it cannot be opened, or is no NVRTC that makes cubins (CUDA 11.1 or newer).
    pub fn open(file: &Path) -> Result<Self, String> {
        let at = |what: String| format!("{}: {what}", file.display());
        // SAFETY: the file is named as NVIDIA names NVRTC, whose initialisers only set up the library itself.
        let library = unsafe { Library::new(file) }.map_err(|e| at(e.to_string()))?;
        let mut version = (0, 0);
        let mut count = 0;
        // SAFETY: each function has the type that nvrtc.h declares; `version`, `count` and `numbers` (of `count`
        // elements) outlive the calls that write to them.
        unsafe {
            let get_version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status =
                function(&library, c"nvrtcVersion").map_err(at)?;
            let count_archs: unsafe extern "C" fn(*mut c_int) -> Status =
                function(&library, c"nvrtcGetNumSupportedArchs").map_err(at)?;
            let get_archs: unsafe extern "C" fn(*mut c_int) -> Status =
                function(&library, c"nvrtcGetSupportedArchs").map_err(at)?;
            if get_version(&mut version.0, &mut version.1) != 0 || count_archs(&mut count) != 0 {
                return Err(at("does not tell its version".to_owned()));
            }
            let mut numbers = vec![0; usize::try_from(count).unwrap_or(0)];
            if get_archs(numbers.as_mut_ptr()) != 0 {
                return Err(at("does not tell its architectures".to_owned()));
            }
            let known = |arch: &Arch| numbers.iter().any(|&number| u32::try_from(number) == Ok(arch.number()));
            Ok(Self {
                create: function(&library, c"nvrtcCreateProgram").map_err(at)?,
                compile: function(&library, c"nvrtcCompileProgram").map_err(at)?,
                destroy: function(&library, c"nvrtcDestroyProgram").map_err(at)?,
                cubin_size: function(&library, c"nvrtcGetCUBINSize").map_err(at)?,
                cubin: function(&library, c"nvrtcGetCUBIN").map_err(at)?,
                log_size: function(&library, c"nvrtcGetProgramLogSize").map_err(at)?,
                log: function(&library, c"nvrtcGetProgramLog").map_err(at)?,
                error_string: function(&library, c"nvrtcGetErrorString").map_err(at)?,
                version,
                library_bytes: file.metadata().map_or(0, |metadata| metadata.len()),
                archs: Arch::ALL.into_iter().filter(known).collect(),
                _library: library,
            })
        }
    }

    /// The version, such as 12.9.
    pub fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// The size of the library's file, which distinguishes releases of one version.
    pub fn library_bytes(&self) -> u64 {
        self.library_bytes
    }

    /// The architectures it can compile for.
    pub fn archs(&self) -> &[Arch] {
        &self.archs
    }

    /// Compiles one translation unit of a kernel or a probe to a cubin. Messages call the unit `name`.
    ///
    /// # Errors
    /// The compiler's messages. Warnings count as errors, except those that [`messages`] allows.
    pub fn compile(&self, name: &str, role: Role, unit: &str, flags: &[String]) -> Result<Vec<u8>, String> {
        let text = |text: &str| CString::new(text).map_err(|_| format!("{name}: expected no NUL in the source"));
        let (unit, unit_name) = (text(unit)?, text(name)?);
        // From its own cache NVRTC returns a result without the messages: a refused unit would pass the second time.
        let no_cache = (self.version >= (12, 9)).then_some("--no-cache");
        let flags = flags.iter().map(String::as_str).chain(no_cache).map(text).collect::<Result<Vec<_>, _>>()?;
        let flags: Vec<_> = flags.iter().map(|flag| flag.as_ptr()).collect();
        let mut program = Owned { nvrtc: self, program: ptr::null_mut() };
        // SAFETY: the strings outlive the program; it has no headers, so their arrays may be null.
        let status = unsafe {
            (self.create)(&mut program.program, unit.as_ptr(), unit_name.as_ptr(), 0, ptr::null(), ptr::null())
        };
        self.check(status)?;
        let count = c_int::try_from(flags.len()).map_err(|_| format!("{name}: too many flags"))?;
        // SAFETY: `create` made the program, and `flags` has `count` strings.
        let status = unsafe { (self.compile)(program.program, count, flags.as_ptr()) };
        let log = program.bytes(self.log_size, self.log)?;
        let failures = messages::failures(&String::from_utf8_lossy(&log), role);
        if !failures.is_empty() {
            return Err(failures);
        }
        self.check(status)?;
        program.bytes(self.cubin_size, self.cubin)
    }

    fn check(&self, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: accepts any number, and returns a string that lives as long as the library.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) };
        Err(format!("NVRTC {}: {}", self.version(), text.to_string_lossy()))
    }
}

/// Destroys the program on drop.
struct Owned<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Owned<'_> {
    /// One of the program's results: its size first, then its bytes.
    fn bytes(
        &self,
        size_of: unsafe extern "C" fn(Program, *mut usize) -> Status,
        copy: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> Result<Vec<u8>, String> {
        let mut size = 0;
        // SAFETY: the program was made by `create`, and `size` outlives the call.
        self.nvrtc.check(unsafe { size_of(self.program, &mut size) })?;
        let mut bytes = vec![0u8; size];
        // SAFETY: as above; `bytes` has the size that the library asked for.
        self.nvrtc.check(unsafe { copy(self.program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: `create` made the program, and nothing uses it after this.
            unsafe { (self.nvrtc.destroy)(&mut self.program) };
        }
    }
}

/// The compute capabilities of this machine's GPUs, such as (9, 0). Empty without a driver or a GPU.
pub fn gpus() -> Vec<(u32, u32)> {
    const MAJOR: c_int = 75;
    const MINOR: c_int = 76;
    let mut found = Vec::new();
    // SAFETY: libcuda is the driver's library, whose initialisers only set up the library itself; each function has the
    // type that cuda.h declares; all results outlive the calls that write to them.
    let _ = unsafe {
        || -> Result<(), String> {
            let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
            let library = Library::new(name).map_err(|e| e.to_string())?;
            let init: unsafe extern "C" fn(u32) -> Status = function(&library, c"cuInit")?;
            let count: unsafe extern "C" fn(*mut c_int) -> Status = function(&library, c"cuDeviceGetCount")?;
            let get: unsafe extern "C" fn(*mut c_int, c_int) -> Status = function(&library, c"cuDeviceGet")?;
            let attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status =
                function(&library, c"cuDeviceGetAttribute")?;
            let mut gpus = 0;
            if init(0) != 0 || count(&mut gpus) != 0 {
                return Ok(());
            }
            for index in 0..gpus {
                let (mut gpu, mut major, mut minor) = (0, 0, 0);
                let failed = get(&mut gpu, index) != 0
                    || attribute(&mut major, MAJOR, gpu) != 0
                    || attribute(&mut minor, MINOR, gpu) != 0;
                if !failed {
                    found.extend(u32::try_from(major).ok().zip(u32::try_from(minor).ok()));
                }
            }
            Ok(())
        }()
    };
    found
}

/// A library's function, by name.
///
/// # Safety
/// `F` is the type of a pointer to the function of that name, and is not used after the library is closed.
unsafe fn function<F: Copy>(library: &Library, name: &CStr) -> Result<F, String> {
    // SAFETY: guaranteed by the caller.
    unsafe { library.get::<F>(name) }.map(|symbol| *symbol).map_err(|e| e.to_string())
}
