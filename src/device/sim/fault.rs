//! Faults of kernels.

use std::fmt;

/// A line of a kernel's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Threads of a block that are stuck at the same place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub threads: u32,
    /// The primitive in which they wait; `None` for finished threads.
    pub at: Option<(String, Place)>,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            Some((what, place)) => write!(f, "{} in {what} at {place}", self.threads),
            None => write!(f, "{} finished", self.threads),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// The bytes are not inside one live allocation.
    OutOfBoundsGlobal { address: u64, bytes: u32, nearest: Option<(u64, u64)> },
    /// Beyond the array of `of` bytes, or beyond the block's shared memory.
    OutOfBoundsShared { offset: u64, bytes: u32, of: u64 },
    /// The address is no multiple of the access's size.
    Misaligned { address: u64, bytes: u32 },
    /// A read of shared memory that was never written.
    UninitialisedShared { offset: u64 },
    /// An access to the destination of an asynchronous copy before it was waited for.
    InFlight { offset: u64 },
    /// A bulk copy or `wgmma` reads what a thread wrote without a `fence_async` after it.
    Unfenced { offset: u64, thread: u32, place: Place },
    /// Two accesses to shared memory that no barrier orders, at least one of them a write. Threads are numbered through
    /// the cluster.
    Race { offset: u64, access: &'static str, earlier: &'static str, thread: u32, place: Place },
    /// An access to the shared memory of block `rank` of the cluster, which may end before the access.
    BlockEnded { rank: u32 },
    /// A deadlock: all threads wait.
    DivergentBarrier { groups: Vec<Waiting> },
    /// A primitive's rules were violated.
    Misuse { what: String },
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultKind::OutOfBoundsGlobal { address, bytes, nearest } => {
                write!(f, "access of {bytes} bytes outside global memory at {address:#x}")?;
                match nearest {
                    Some((start, len)) if address >= start => {
                        write!(f, ", {} bytes into an allocation of {len}", address - start)
                    }
                    Some((start, len)) => write!(f, ", {} bytes before an allocation of {len}", start - address),
                    None => write!(f, ", where nothing is allocated"),
                }
            }
            FaultKind::OutOfBoundsShared { offset, bytes, of } => {
                write!(f, "access of {bytes} bytes at byte {offset} of {of} bytes of shared memory")
            }
            FaultKind::Misaligned { address, bytes } => {
                write!(f, "access of {bytes} bytes at {address:#x}, which is not a multiple of that size")
            }
            FaultKind::UninitialisedShared { offset } => {
                write!(f, "read of shared memory at byte {offset}, which nothing has written")
            }
            FaultKind::InFlight { offset } => {
                write!(f, "access to shared memory at byte {offset} before the asynchronous copy to it was waited for")
            }
            FaultKind::Unfenced { offset, thread, place } => write!(
                f,
                "asynchronous read of shared memory at byte {offset}, which thread {thread} wrote at {place} without a \
                 fence_async behind it"
            ),
            FaultKind::Race { offset, access, earlier, thread, place } => write!(
                f,
                "{access} of shared memory at byte {offset} races with a {earlier} by thread {thread} at {place}"
            ),
            FaultKind::BlockEnded { rank } => {
                write!(f, "access to the shared memory of block {rank} of the cluster, whose threads may have ended")
            }
            FaultKind::DivergentBarrier { groups } => {
                write!(f, "the block's threads wait for each other: ")?;
                for (i, group) in groups.iter().enumerate() {
                    write!(f, "{}{group}", if i == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            FaultKind::Misuse { what } => f.write_str(what),
        }
    }
}

/// The first fault of a launch; it ends the launch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kernel {kernel}, block ({}, {}, {}), thread {thread}, {place}: {kind}", block[0], block[1], block[2])]
pub struct Fault {
    pub kernel: String,
    pub block: [u32; 3],
    pub thread: u32,
    pub kind: Box<FaultKind>,
    pub place: Place,
}
