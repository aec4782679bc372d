//! Counts the instructions of a variant's machine code.
//!
//! From Volta on an instruction has 16 bytes; its lowest 12 bits are the operation and the kinds of its operands. The
//! numbers are undocumented; these were compared with the output of `nvdisasm` 13.5 for sm_75 to sm_90a. It does not
//! support Volta, whose tensor core instruction was found by its count, four for each product.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSection};

use crate::Arch;

/// Bytes of an instruction.
const SIZE: usize = 16;

/// Operations that facts can name: nvdisasm's name, and the lowest 12 bits.
const OPERATIONS: [(&str, &[u128]); 13] = [
    ("HMMA.884", &[0x236]),
    ("HMMA.1688", &[0x23c]),
    ("HMMA.16816", &[0x23c]),
    ("HGMMA", &[0x9f0, 0xdf0]),
    ("LDSM", &[0x83b]),
    ("LDS", &[0x984]),
    ("STS", &[0x388, 0x988]),
    ("LDG", &[0x381, 0x981]),
    ("LDGSTS", &[0xfae]),
    ("UTMALDG", &[0x5b4]),
    ("USETMAXREG", &[0x9c8]),
    ("LDL", &[0x983]),
    ("STL", &[0x387]),
];
const BRANCH: u128 = 0x947;
/// The predicate of an instruction that never executes; compilers pad with such instructions.
const NEVER: u128 = 0xf;

/// The instructions of a kernel.
pub struct Sass {
    arch: Arch,
    instructions: Vec<u128>,
}

/// The number of instructions of each named operation, and of all instructions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mix {
    named: BTreeMap<&'static str, u32>,
    all: u32,
}

/// Whether facts can name this operation.
pub fn is_operation(name: &str) -> bool {
    OPERATIONS.iter().any(|(own, _)| *own == name)
}

/// Whether it is a tensor core operation.
pub fn is_tensor_operation(name: &str) -> bool {
    name.contains("MMA")
}

impl Sass {
    /// Reads the code of the kernel `name` in a cubin.
    ///
    /// # Errors
    /// One line: this is not a cubin, or not that of the kernel.
    pub fn read(name: &str, arch: Arch, cubin: &[u8]) -> Result<Self, String> {
        let file = ElfFile64::<LittleEndian>::parse(cubin).map_err(|e| format!("no cubin: {e}"))?;
        let code = file.section_by_name(&format!(".text.{name}")).and_then(|section| section.data().ok());
        let code = code.ok_or("expected machine code, found none")?;
        let (instructions, _) = code.as_chunks::<SIZE>();
        Ok(Self { arch, instructions: instructions.iter().map(|bytes| u128::from_le_bytes(*bytes)).collect() })
    }

    /// The instructions of the whole kernel.
    pub fn mix(&self) -> Mix {
        Mix::of(&self.instructions)
    }

    /// The instructions of the loop with the most tensor instructions, code for rare cases included. Empty if there is
    /// none.
    pub fn main_loop(&self) -> Mix {
        let branches = self.instructions.iter().enumerate().filter(|(_, i)| operation(**i) == BRANCH);
        let loops = branches.filter_map(|(at, branch)| self.looped(at, *branch));
        let mixes = loops.map(|range| Mix::of(&self.instructions[range])).filter(|mix| mix.tensor() > 0);
        mixes.max_by_key(|mix| (mix.tensor(), std::cmp::Reverse(mix.all))).unwrap_or_default()
    }

    /// The instructions from a backward branch's target to the branch; `None` for a forward branch.
    fn looped(&self, at: usize, branch: u128) -> Option<RangeInclusive<usize>> {
        // The distance from the next instruction, in words. Hopper stores its lowest eight bits elsewhere.
        let upper = ((branch >> 34) as i64) << 16 >> 16;
        let words = if self.arch.number() < 90 { upper } else { upper << 8 | (branch >> 16 & 0xff) as i64 };
        let target = usize::try_from(at as i64 + 1 + words / (SIZE as i64 / 4)).ok()?;
        (target <= at).then_some(target..=at)
    }
}

fn operation(instruction: u128) -> u128 {
    instruction & 0xfff
}

impl Mix {
    fn of(instructions: &[u128]) -> Self {
        let mut mix = Self { all: instructions.len() as u32, ..Self::default() };
        for &instruction in instructions.iter().filter(|&instruction| instruction >> 12 & 0xf != NEVER) {
            // One operation has two depths, which a bit tells apart.
            let deep = instruction >> 75 & 1 == 1;
            let is = |(name, codes): &&(&str, &[u128])| {
                codes.contains(&operation(instruction))
                    && (*name != "HMMA.1688" || !deep)
                    && (*name != "HMMA.16816" || deep)
            };
            if let Some((name, _)) = OPERATIONS.iter().find(is) {
                *mix.named.entry(name).or_default() += 1;
            }
        }
        mix
    }

    /// Instructions of an operation.
    pub fn count(&self, name: &str) -> u32 {
        self.named.get(name).copied().unwrap_or(0)
    }

    /// The number of tensor core instructions.
    fn tensor(&self) -> u32 {
        self.named.iter().filter(|(name, _)| is_tensor_operation(name)).map(|(_, count)| count).sum()
    }

    /// A mix of these counts and no other instructions.
    pub fn of_operations<'a>(counts: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let mut mix = Self::default();
        for (name, count) in counts {
            if let Some((own, _)) = OPERATIONS.iter().find(|(own, _)| *own == name) {
                mix.named.insert(own, count);
                mix.all += count;
            }
        }
        mix
    }

    /// The ideal loop, multiplied to as many tensor instructions as the compiled loop has, which may be unrolled, but
    /// at least once; and the percentage of the compiled loop that is not in it.
    pub fn ideal_of(&self, found: &Mix) -> (Mix, u32) {
        let tensor = self.named.keys().filter(|name| is_tensor_operation(name));
        let passes = (tensor.map(|name| found.count(name)).sum::<u32>() / self.tensor().max(1)).max(1);
        let ideal = Self::of_operations(self.named.iter().map(|(name, count)| (*name, count * passes)));
        let beyond = 100 * found.all.saturating_sub(ideal.all) / found.all.max(1);
        (ideal, beyond)
    }
}

/// `64 HMMA.16816, 24 LDSM, 8 LDGSTS, 300 others`.
impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, _) in OPERATIONS.iter().filter(|(name, _)| self.count(name) > 0) {
            write!(f, "{} {name}, ", self.count(name))?;
        }
        write!(f, "{} others", self.all - self.named.values().sum::<u32>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arch(number: u32) -> Arch {
        Arch::ALL.into_iter().find(|arch| arch.number() == number).unwrap()
    }

    fn sass(number: u32, instructions: &[u128]) -> Sass {
        Sass { arch: arch(number), instructions: instructions.to_vec() }
    }

    /// Instruction words of nvdisasm's listings.
    #[test]
    fn tensor_cores_are_told_apart() {
        let (volta, turing, ampere) = (
            0x000f640000005410_0000000a08107236,
            0x004fe2000000100c_00000008060c723c,
            0x004fee0000041810_0000000c0410723c,
        );
        let mix = sass(80, &[volta, turing, ampere, ampere]).mix();
        assert_eq!((mix.count("HMMA.884"), mix.count("HMMA.1688"), mix.count("HMMA.16816")), (1, 1, 2));
        assert_eq!(mix.to_string(), "1 HMMA.884, 1 HMMA.1688, 2 HMMA.16816, 0 others");
    }

    #[test]
    fn the_main_loop_is_the_one_with_the_products() {
        let product = 0x004fee0000041810_0000000c0410723c;
        let other = 0x918;
        // Back by two instructions, counted from the next one: eight words.
        let (ampere, hopper) = (BRANCH | (-8i64 as u128) << 34, BRANCH | 0xf8 << 16 | u128::MAX << 34);
        for (number, back) in [(80, ampere), (90, hopper)] {
            let code = [other, product, back, other, other, back];
            let mix = sass(number, &code).main_loop();
            assert_eq!((mix.count("HMMA.16816"), mix.all), (1, 2), "sm_{number}");
        }
        assert_eq!(sass(80, &[product, other]).main_loop(), Mix::default());
    }

    #[test]
    fn an_ideal_has_as_many_products_as_the_loop() {
        let ideal = Mix::of_operations([("HMMA.16816", 4), ("LDSM", 2)].into_iter());
        assert_eq!(ideal.to_string(), "4 HMMA.16816, 2 LDSM, 0 others");
        let found = |products, loads, all| {
            let named = BTreeMap::from([("HMMA.16816", products), ("LDSM", loads)]);
            let (ideal, beyond) = ideal.ideal_of(&Mix { named, all });
            (ideal.to_string(), beyond)
        };
        assert_eq!(found(4, 2, 6), ("4 HMMA.16816, 2 LDSM, 0 others".to_owned(), 0));
        // Unrolled; with extra products for rare cases; with loads hoisted out of the loop.
        assert_eq!(found(8, 4, 16), ("8 HMMA.16816, 4 LDSM, 0 others".to_owned(), 25));
        assert_eq!(found(9, 4, 24), ("8 HMMA.16816, 4 LDSM, 0 others".to_owned(), 50));
        assert_eq!(found(4, 0, 4), ("4 HMMA.16816, 2 LDSM, 0 others".to_owned(), 0));
        assert_eq!(found(3, 2, 8), ("4 HMMA.16816, 2 LDSM, 0 others".to_owned(), 25));
        // Other tensor instructions do not count.
        let other = Mix { named: BTreeMap::from([("HMMA.1688", 8)]), all: 12 };
        assert_eq!(ideal.ideal_of(&other).0, ideal);
    }

    /// An array indexed at run time: nvdisasm's listings have as many stores.
    #[test]
    fn local_memory_accesses_are_counted() {
        for (number, cubin) in [
            (75, &include_bytes!("../tests/cubins/stack-sm_75-nvrtc-12.9.cubin")[..]),
            (90, &include_bytes!("../tests/cubins/stack-sm_90a-nvcc-13.0.cubin")[..]),
        ] {
            let mix = Sass::read("stack", arch(number), cubin).unwrap().mix();
            assert_eq!(mix.count("STL"), 4, "sm_{number}: {mix}");
            assert!(mix.count("LDL") > 0, "sm_{number}: {mix}");
        }
        assert!(Sass::read("other", arch(75), include_bytes!("../tests/cubins/stack-sm_75-nvrtc-12.9.cubin")).is_err());
        assert!(Sass::read("stack", arch(75), b"no cubin").is_err());
    }
}
