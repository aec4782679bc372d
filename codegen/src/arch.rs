//! The GPU architectures that kernels are built for.

use std::fmt;
use std::str::FromStr;

/// A GPU architecture by its compute capability: 90 is 9.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arch(u32);

impl Arch {
    /// Volta to Hopper.
    pub const ALL: [Self; 6] = [Self(70), Self(75), Self(80), Self(86), Self(89), Self(90)];

    /// The number as in specifications' rules and in the tables: 90 for 9.0.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The compiler's target, without `sm_`: Hopper's own instructions need the `a`.
    pub fn target(self) -> &'static str {
        match self.0 {
            70 => "70",
            75 => "75",
            80 => "80",
            86 => "86",
            89 => "89",
            _ => "90a",
        }
    }

    /// The architecture whose code runs on a GPU of compute capability `major.minor`: the newest one of the same major
    /// version that is not above it.
    pub fn that_runs_on(major: u32, minor: u32) -> Option<Self> {
        let same_major = |arch: &&Self| arch.0 / 10 == major && arch.0 % 10 <= minor;
        Self::ALL.iter().filter(same_major).max().copied()
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.target())
    }
}

impl FromStr for Arch {
    type Err = String;

    /// Reads `80`, `8.0`, `90a` or `sm_90a`.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("sm_").unwrap_or(text).replace('.', "");
        let digits = if digits == "90a" { "90" } else { &digits };
        Self::ALL.into_iter().find(|arch| arch.0.to_string() == digits).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|arch| arch.target()).collect();
            format!("expected an architecture of {}, found {text:?}", known.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_read_in_every_spelling() {
        for (text, number) in [("80", 80), ("8.0", 80), ("90", 90), ("90a", 90), ("sm_90a", 90), ("sm_75", 75)] {
            assert_eq!(text.parse::<Arch>().unwrap().number(), number);
        }
        for text in ["", "60", "80a", "sm_", "native"] {
            let error = text.parse::<Arch>().unwrap_err();
            assert!(error.starts_with("expected an architecture of 70, 75, 80, 86, 89, 90a"), "{error}");
        }
    }

    #[test]
    fn a_gpu_runs_code_of_its_major_version() {
        let number = |major, minor| Arch::that_runs_on(major, minor).map(Arch::number);
        assert_eq!(number(8, 0), Some(80));
        assert_eq!(number(8, 7), Some(86));
        assert_eq!(number(9, 0), Some(90));
        assert_eq!(number(7, 2), Some(70));
        assert_eq!(number(6, 1), None);
        assert_eq!(number(10, 0), None);
    }
}
