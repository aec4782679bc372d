//! Decides which messages of the CUDA compiler fail a build.

use crate::Role;

/// Messages that never fail a build.
const HARMLESS: [&str; 2] = [
    // CUDA 12.9 warns that it is the last version for Volta.
    "are deprecated and may be removed",
    // A `warpgroup.arrive` is injected before the first use of a wgmma's registers: it costs one instruction.
    "(C7519)",
];

/// Remarks on wgmma that are allowed in probes, some of which lack a fence or a wait on purpose. In a kernel they mean
/// that the compiler has inserted waits or serialised the products (C7510 to C7515), which is as slow as spilled
/// registers, and refused for the same reason.
const HARMLESS_IN_PROBES: &str = "(C751";

/// The lines of a compiler's log that fail the build of a unit. Unknown messages do.
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
    fn other_messages_fail_both() {
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
