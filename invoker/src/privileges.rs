//! Capabilities: what the program needs and for what, and dropping the rest.
//!
//! Capabilities belong to threads. [`drop_unneeded`] must run before the first other thread exists; those made
//! later inherit what it left.

use std::collections::HashSet;
use std::fmt;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use openwhisk_compat::config::Isolation;

/// A capability the program uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Which.
    pub capability: Capability,
    /// What fails without it.
    pub purpose: &'static str,
    /// Whether only rewinding needs it; the other isolation modes do without.
    pub rewind_only: bool,
    /// Whether nothing works without it. Without another one, a container whose request made it necessary is
    /// quarantined.
    pub essential: bool,
}

const fn essential(capability: Capability, purpose: &'static str) -> Need {
    Need { capability, purpose, rewind_only: true, essential: true }
}

const fn useful(capability: Capability, purpose: &'static str) -> Need {
    Need { capability, purpose, rewind_only: true, essential: false }
}

/// Everything the program uses, with its reason. What is not here is dropped at start.
pub const NEEDS: &[Need] = &[
    Need {
        capability: Capability::CAP_DAC_OVERRIDE,
        purpose: "read the engine's log files and socket, write the control groups, put files of containers back",
        rewind_only: false,
        essential: true,
    },
    Need {
        capability: Capability::CAP_DAC_READ_SEARCH,
        purpose: "read files of containers whatever their mode",
        rewind_only: false,
        essential: true,
    },
    Need {
        capability: Capability::CAP_KILL,
        purpose: "end processes that a request left behind, whatever their user",
        rewind_only: false,
        essential: true,
    },
    essential(Capability::CAP_SYS_PTRACE, "stop, read and put back processes of containers"),
    essential(
        Capability::CAP_SYS_ADMIN,
        "scan and protect pages, enter namespaces of containers, read overlay attributes",
    ),
    useful(Capability::CAP_SYS_RESOURCE, "put resource limits back"),
    useful(Capability::CAP_SYS_NICE, "put priorities and CPU affinity back"),
    essential(Capability::CAP_CHOWN, "put owners of files back"),
    essential(Capability::CAP_FOWNER, "put modes, times and attributes of files back"),
    useful(Capability::CAP_FSETID, "put set-user-id and set-group-id bits of files back"),
    useful(Capability::CAP_SYS_CHROOT, "swap the files of a container that changed many"),
    useful(Capability::CAP_MKNOD, "put device files of a container back"),
    useful(Capability::CAP_SETFCAP, "put capabilities of files back"),
];

/// What this isolation mode needs.
pub fn needs(isolation: Isolation) -> impl Iterator<Item = &'static Need> {
    NEEDS.iter().filter(move |need| isolation == Isolation::Rewind || !need.rewind_only)
}

/// Needed capabilities that this process does not have.
///
/// # Errors
/// If the kernel does not say what there is.
pub fn missing(isolation: Isolation) -> Result<Vec<&'static Need>, CapsError> {
    let have = caps::read(None, CapSet::Permitted)?;
    Ok(needs(isolation).filter(|need| !have.contains(&need.capability)).collect())
}

/// What dropping did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Capabilities that are in force now.
    pub kept: Vec<Capability>,
    /// Capabilities that were there and are gone.
    pub dropped: Vec<Capability>,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |capabilities: &[Capability]| {
            let names: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
            if names.is_empty() { "none".to_owned() } else { names.join(" ") }
        };
        write!(f, "kept {}; dropped {}", list(&self.kept), list(&self.dropped))
    }
}

/// Gives up every capability that `isolation` does not need, in all sets, and the way to get any back: neither
/// this process nor a program it starts can gain one afterwards.
///
/// Must be called while the process has one thread.
///
/// # Errors
/// If the kernel refuses; nothing is half in force that was not before, since sets only shrink.
pub fn drop_unneeded(isolation: Isolation) -> Result<Dropped, CapsError> {
    let wanted: HashSet<Capability> = needs(isolation).map(|need| need.capability).collect();
    let before = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = before.intersection(&wanted).copied().collect();

    // The bounding set first: shrinking it needs CAP_SETPCAP, which is about to go.
    if before.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::all().difference(&wanted) {
            // A capability that this kernel does not know cannot be in the set.
            if caps::has_cap(None, CapSet::Bounding, *capability).unwrap_or(false) {
                caps::drop(None, CapSet::Bounding, *capability)?;
            }
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        tracing::warn!(%error, "no_new_privs could not be set");
    }

    let sorted = |capabilities: &mut dyn Iterator<Item = Capability>| {
        let mut list: Vec<Capability> = capabilities.collect();
        list.sort_unstable_by_key(Capability::index);
        list
    };
    Ok(Dropped {
        kept: sorted(&mut kept.iter().copied()),
        dropped: sorted(&mut before.difference(&kept).copied()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_need_is_named_once_and_says_why() {
        let names: HashSet<Capability> = NEEDS.iter().map(|need| need.capability).collect();
        assert_eq!(names.len(), NEEDS.len());
        assert!(NEEDS.iter().all(|need| !need.purpose.is_empty() && !need.purpose.ends_with('.')));
    }

    #[test]
    fn other_modes_need_less() {
        assert_eq!(needs(Isolation::Rewind).count(), NEEDS.len());
        assert_eq!(needs(Isolation::None).count(), 3);
        assert_eq!(needs(Isolation::SingleUse).count(), 3);
    }

    /// In a thread of its own, since capabilities are per thread and do not come back.
    #[test]
    fn what_is_not_needed_goes_for_good() {
        if !caps::has_cap(None, CapSet::Permitted, Capability::CAP_SETPCAP).unwrap() {
            eprintln!("SKIP what_is_not_needed_goes_for_good: needs CAP_SETPCAP (run as root)");
            return;
        }
        let outcome = std::thread::spawn(|| {
            let dropped = drop_unneeded(Isolation::None).unwrap();
            assert!(dropped.dropped.contains(&Capability::CAP_SYS_ADMIN), "{dropped}");
            assert!(dropped.kept.contains(&Capability::CAP_KILL), "{dropped}");
            for set in [CapSet::Effective, CapSet::Permitted, CapSet::Bounding] {
                assert!(!caps::has_cap(None, set, Capability::CAP_SYS_MODULE).unwrap(), "{set:?}");
            }
            assert!(caps::raise(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).is_err());
            assert_eq!(missing(Isolation::None).unwrap(), Vec::<&Need>::new());
            let missing = missing(Isolation::Rewind).unwrap();
            assert!(missing.iter().any(|need| need.capability == Capability::CAP_SYS_PTRACE));
        });
        outcome.join().unwrap();
    }
}
