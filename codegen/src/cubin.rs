//! Reads a compiled variant's resource usage from its cubin.
//!
//! A cubin is an ELF file. Its `.nv.info` section is a sequence of attributes: one byte of format, one of kind, two of
//! size or value, then the value of that size. The kinds are undocumented; these were compared with the output of
//! `cuobjdump --dump-resource-usage` of CUDA 12.9 and 13.0, for sm_70 to sm_90a.

use object::elf::{EM_CUDA, FileHeader64};
use object::read::elf::{ElfFile64, FileHeader};
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol};

/// Resources that a variant's kernel uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Registers per thread.
    pub registers: u32,
    /// Shared memory per block, in bytes, all of it dynamic.
    pub shared_bytes: u32,
    /// Local memory per thread, in bytes: spilled registers, and arrays indexed at run time.
    pub local_bytes: u32,
    /// Constant memory in bytes: arguments, the driver's own data, and tables.
    pub constant_bytes: u32,
    /// Machine code in bytes.
    pub code_bytes: u32,
}

/// The kind of an attribute with a symbol's number and its registers per thread.
const REGISTERS: u8 = 0x2f;
/// The kind of an attribute with a symbol's number and its bytes of stack per thread, callees included.
const STACK: u8 = 0x12;
/// The format of an attribute with a size and a value.
const SIZED: u8 = 4;

impl Resources {
    /// Reads the cubin of the variant `name`.
    ///
    /// # Errors
    /// One line: this is not a cubin, or not that of the variant.
    pub fn read(name: &str, cubin: &[u8]) -> Result<Self, String> {
        let file = ElfFile64::<LittleEndian>::parse(cubin).map_err(|e| format!("no cubin: {e}"))?;
        let machine = FileHeader64::<LittleEndian>::parse(cubin).map(|header| header.e_machine(LittleEndian));
        if machine.ok() != Some(EM_CUDA) {
            return Err("no cubin: expected an ELF file for CUDA".to_owned());
        }
        let section = |name: &str| file.section_by_name(name).map(|section| section.size());
        let symbol = |name: &str| file.symbols().find(|symbol| symbol.name() == Ok(name));
        let kernel = symbol(name).ok_or_else(|| format!("expected the kernel {name}, found none"))?.index().0;
        let info = file.section_by_name(".nv.info").and_then(|section| section.data().ok()).unwrap_or_default();
        let attribute = |kind| attributes(info).find(|a| (a.0, a.1 as usize) == (kind, kernel)).map(|a| a.2);
        let small =
            |size: u64| u32::try_from(size).map_err(|_| format!("expected less than 4 GiB, found {size} bytes"));
        let constants: u64 =
            file.sections().filter(|s| s.name().is_ok_and(|n| n.starts_with(".nv.constant"))).map(|s| s.size()).sum();
        Ok(Self {
            registers: attribute(REGISTERS).ok_or("expected a number of registers, found none")?,
            shared_bytes: shared_bytes(&file, &format!("{name}__shared"))?,
            local_bytes: attribute(STACK).unwrap_or(0) + small(section(&format!(".nv.local.{name}")).unwrap_or(0))?,
            constant_bytes: small(constants)?,
            code_bytes: small(section(&format!(".text.{name}")).ok_or("expected machine code, found none")?)?,
        })
    }
}

/// The attributes of `.nv.info` that have a symbol: kind, symbol, value.
fn attributes(mut info: &[u8]) -> impl Iterator<Item = (u8, u32, u32)> {
    let word = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    std::iter::from_fn(move || {
        let &[format, kind, low, high, ref rest @ ..] = info else { return None };
        let size = if format == SIZED { usize::from(u16::from_le_bytes([low, high])) } else { 0 };
        let value = rest.get(..size)?;
        info = &rest[size..];
        Some((kind, value))
    })
    .filter_map(move |(kind, value)| Some((kind, word(value, 0)?, word(value, 4)?)))
}

/// The initial value of the constant that BURRSTONE_KERNEL defines beside the kernel.
fn shared_bytes(file: &ElfFile64<LittleEndian>, name: &str) -> Result<u32, String> {
    let missing = || format!("expected the constant {name}, found none");
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name)).ok_or_else(missing)?;
    let section = symbol.section_index().and_then(|index| file.section_by_index(index).ok()).ok_or_else(missing)?;
    // A constant of zero may be in a section without bytes.
    let data = section.data().unwrap_or_default();
    if data.is_empty() {
        return Ok(0);
    }
    let start = usize::try_from(symbol.address().wrapping_sub(section.address())).map_err(|_| missing())?;
    let bytes = start.checked_add(4).and_then(|end| data.get(start..end)).ok_or_else(missing)?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_every_format_are_read() {
        let info = [
            &[3, 0x1b, 0xff, 0][..],                    // a value in place of the size
            &[4, 0x2f, 8, 0, 12, 0, 0, 0, 14, 0, 0, 0], // symbol and value
            &[4, 0x37, 4, 0, 0x81, 0, 0, 0],            // without a symbol
            &[4, 0x12, 8, 0, 12, 0, 0, 0, 16, 0, 0, 0],
            &[4, 0x12, 8, 0, 1], // cut off
        ]
        .concat();
        assert_eq!(attributes(&info).collect::<Vec<_>>(), [(0x2f, 12, 14), (0x12, 12, 16)]);
    }

    /// Cubins of `tests/cubins/stack.cu`, an array of 64 bytes indexed at run time; the numbers are cuobjdump's.
    #[test]
    fn cubins_of_both_compilers_are_read() {
        let nvrtc = include_bytes!("../tests/cubins/stack-sm_75-nvrtc-12.9.cubin");
        let expected =
            Resources { registers: 28, shared_bytes: 128, local_bytes: 64, constant_bytes: 372, code_bytes: 3328 };
        assert_eq!(Resources::read("stack", nvrtc), Ok(expected));
        let nvcc = include_bytes!("../tests/cubins/stack-sm_90a-nvcc-13.0.cubin");
        let expected =
            Resources { registers: 32, shared_bytes: 128, local_bytes: 64, constant_bytes: 548, code_bytes: 3584 };
        assert_eq!(Resources::read("stack", nvcc), Ok(expected));
        let error = Resources::read("other", nvcc).unwrap_err();
        assert_eq!(error, "expected the kernel other, found none");
        for end in 0..nvcc.len() {
            // A truncated file is an error at any length.
            let _ = Resources::read("stack", &nvcc[..end]);
        }
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in [&b""[..], b"not an ELF file", &[0x7f, b'E', b'L', b'F', 2, 1, 1]] {
            assert!(Resources::read("a", bytes).unwrap_err().starts_with("no cubin"));
        }
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(Resources::read("a", &program).unwrap_err().starts_with("no cubin"));
    }
}
