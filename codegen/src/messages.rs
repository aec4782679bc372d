//! Which messages of the CUDA compiler fail a build.

use crate::Role;

/// Messages that fail nothing, whatever the unit is.
const HARMLESS: [&str; 2] = [
    // CUDA 12.9 announces that it is the last to compile for Volta.
    "are deprecated and may be removed",
    // A `warpgroup.arrive` is injected where the registers of a wgmma are first used: it costs one instruction.
    "(C7519)",
];

/// Remarks on wgmma that a probe may draw, because some probes lack a fence or a wait on purpose. In a kernel they mean that
/// the compiler has waited where the source does not, or runs the products one after another (C7510 to C7515): as slow as
/// spilled registers, and refused like them.
const HARMLESS_IN_PROBES: &str = "(C751";

/// The lines of a compiler's log that fail the build of a unit; empty where nothing does. Unknown messages fail it.
pub(crate) fn failures(log: &str, role: Role) -> String {
    let harmless = |line: &str| {
        line.trim().is_empty()
            || HARMLESS.iter().any(|text| line.contains(text))
            || (role == Role::Probe && line.contains(HARMLESS_IN_PROBES))
    };
    log.trim_matches('\0').lines().filter(|line| !harmless(line)).collect::<Vec<_>>().join("\n").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INJECTED: &str = "ptxas info    : (C7519) warpgroup.arrive is injected in around line 388 by compiler to allow \
                            use of registers in GMMA in function 'a'";
    const WAITED: &str = "ptxas info    : (C7517) warpgroup.wait is injected in around line 480 by compiler to allow use \
                          of registers defined by GMMA in function 'a'";

    #[test]
    fn an_injected_arrive_fails_nothing() {
        for role in [Role::Kernel, Role::Probe] {
            assert_eq!(failures("", role), "");
            assert_eq!(failures(&format!("{INJECTED}\n\n{INJECTED}\n\0"), role), "");
        }
    }

    #[test]
    fn products_that_are_serialised_fail_a_kernel() {
        for code in 7510..=7515 {
            let line = format!(
                "ptxas info    : (C{code}) Potential Performance Loss: wgmma.mma_async instructions are serialized due \
                 to insufficient register resources for the wgmma pipeline in the function 'a'"
            );
            assert_eq!(failures(&format!("{INJECTED}\n{line}\n"), Role::Kernel), line);
            assert_eq!(failures(&line, Role::Probe), "", "some probes lack a wait on purpose");
        }
        assert_eq!(failures(WAITED, Role::Kernel), WAITED);
        assert_eq!(failures(WAITED, Role::Probe), "");
    }

    #[test]
    fn whatever_else_is_said_fails_both() {
        for line in ["a.cu(3): warning #177-D: variable declared but never referenced", "ptxas info : (C7508) ignored"]
        {
            for role in [Role::Kernel, Role::Probe] {
                assert_eq!(failures(line, role), line);
            }
        }
        let volta =
            "nvrtc: warning: Architectures prior to sm_75 are deprecated and may be removed in a future release";
        assert_eq!(failures(volta, Role::Kernel), "");
    }
}
