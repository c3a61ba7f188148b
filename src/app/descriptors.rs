//! Enough file descriptors, as far as the system allows.

use crate::config::UpstreamMode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The process's own: listeners, the monitor's connections, runtimes, the log.
const OWN: u64 = 64;
/// For how many application connections one upstream connection of their own is kept free while links are shared: most
/// never need one, and one that finds none waits as in any other hold.
const SHARING: u64 = 8;

/// How many of `max_clients` there is room for. Raises the soft limit to the hard one first, as servers do (the soft
/// one is low for the sake of `select`, which is not used here).
///
/// One application too many is then told so, and the rest goes on: without this, the admin server and the connections
/// to a new active replica would be what the descriptors are missing for.
pub(super) fn room_for(max_clients: usize, mode: UpstreamMode) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            limit.current
        }
    };
    let wanted = wanted_for(max_clients as u64, mode);
    match current {
        Some(current) if current < wanted => {
            let room = room_within(current, mode);
            tracing::warn!(
                "listener.max_clients = {max_clients} needs {wanted} open files, the system allows {current}: there is \
                 room for {room}"
            );
            room
        }
        _ => max_clients,
    }
}

fn wanted_for(clients: u64, mode: UpstreamMode) -> u64 {
    let upstream = match mode {
        UpstreamMode::Dedicated => clients,
        UpstreamMode::Shared => clients / SHARING,
    };
    clients.saturating_add(upstream).saturating_add(OWN)
}

/// At least one, however few descriptors there are.
fn room_within(descriptors: u64, mode: UpstreamMode) -> usize {
    let left = descriptors.saturating_sub(OWN);
    let room = match mode {
        UpstreamMode::Dedicated => left / 2,
        UpstreamMode::Shared => left * SHARING / (SHARING + 1),
    };
    usize::try_from(room.max(1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_descriptors_come_first() {
        for mode in [UpstreamMode::Shared, UpstreamMode::Dedicated] {
            for descriptors in [200, 1024, 20_000, 1 << 20] {
                let room = room_within(descriptors, mode) as u64;
                let wanted = wanted_for(room, mode);
                assert!(
                    wanted <= descriptors && descriptors < wanted + 3,
                    "{mode:?}: {room} in {descriptors}"
                );
            }
            assert_eq!(room_within(3, mode), 1);
        }
    }
}
