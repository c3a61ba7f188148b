//! When all workers have drained.

use crate::route::Epoch;

/// Collects the workers' reports for the newest holding route.
#[derive(Debug)]
pub(super) struct Drain {
    epoch: Option<Epoch>,
    /// By worker: whether it has drained under the route of `epoch`.
    drained: Vec<bool>,
}

impl Drain {
    pub(super) fn new(workers: usize) -> Drain {
        Drain {
            epoch: None,
            drained: vec![false; workers],
        }
    }

    /// A route was published: reports of earlier ones no longer count.
    pub(super) fn published(&mut self, epoch: Epoch, holding: bool) {
        self.epoch = holding.then_some(epoch);
        self.drained.fill(false);
    }

    /// `worker` has drained under the route of `epoch`. True once for each holding route: when all have.
    pub(super) fn reported(&mut self, worker: usize, epoch: Epoch) -> bool {
        if self.epoch != Some(epoch) {
            return false;
        }
        let Some(drained) = self.drained.get_mut(worker) else {
            return false;
        };
        *drained = true;
        let all = self.drained.iter().all(|&drained| drained);
        if all {
            self.epoch = None;
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_workers_of_one_epoch_and_only_once() {
        let mut drain = Drain::new(3);
        assert!(!drain.reported(0, Epoch(1)), "no route holds yet");
        drain.published(Epoch(2), true);
        assert!(!drain.reported(0, Epoch(2)));
        assert!(!drain.reported(1, Epoch(2)));
        assert!(!drain.reported(1, Epoch(2)), "twice the same worker");
        assert!(!drain.reported(2, Epoch(1)), "an old epoch");
        assert!(!drain.reported(7, Epoch(2)), "no such worker");
        assert!(drain.reported(2, Epoch(2)));
        assert!(!drain.reported(2, Epoch(2)), "said already");
    }

    #[test]
    fn a_newer_route_starts_the_count_again() {
        let mut drain = Drain::new(2);
        drain.published(Epoch(2), true);
        assert!(!drain.reported(0, Epoch(2)));
        drain.published(Epoch(3), true);
        assert!(!drain.reported(1, Epoch(2)));
        assert!(!drain.reported(1, Epoch(3)));
        assert!(drain.reported(0, Epoch(3)));
        drain.published(Epoch(4), false);
        assert!(!drain.reported(0, Epoch(4)) && !drain.reported(1, Epoch(4)));
    }
}
