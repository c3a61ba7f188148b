//! Enough file descriptors, as far as the system allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The process's own: listeners, the monitor's connections, runtimes, the log.
const OWN: u64 = 64;
/// Each application connection has one upstream connection of its own.
const PER_CLIENT: u64 = 2;

/// How many of `max_clients` there is room for. Raises the soft limit to the hard one first, as servers do (the soft
/// one is low for the sake of `select`, which is not used here).
///
/// One application too many is then told so, and the rest goes on: without this, the admin server and the connections
/// to a new active replica would be what the descriptors are missing for.
pub(super) fn room_for(max_clients: usize) -> usize {
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
    let wanted = (max_clients as u64)
        .saturating_mul(PER_CLIENT)
        .saturating_add(OWN);
    match current {
        Some(current) if current < wanted => {
            let room = room_within(current);
            tracing::warn!(
                "listener.max_clients = {max_clients} needs {wanted} open files, the system allows {current}: there is \
                 room for {room}"
            );
            room
        }
        _ => max_clients,
    }
}

/// At least one, however few descriptors there are.
fn room_within(descriptors: u64) -> usize {
    let room = (descriptors.saturating_sub(OWN) / PER_CLIENT).max(1);
    usize::try_from(room).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::room_within;

    #[test]
    fn its_own_descriptors_come_first() {
        assert_eq!(room_within(1024), 480);
        assert_eq!(room_within(65), 1);
        assert_eq!(room_within(3), 1);
    }
}
