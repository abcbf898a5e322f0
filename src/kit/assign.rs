//! Which counted items fill which lines: a maximum flow, since a part may serve several lines (a colour of its own and
//! any colour, an alternate and itself, a spare).

/// Fill `slots` from `kinds`; returns `flow[kind][slot]`.
///
/// `kinds`: items of each kind; `slots`: places of each line; `fits(kind, slot)`. Slots up to `first_round` are filled as
/// far as possible before the rest is looked at, and are never emptied for it. Deterministic.
#[must_use]
pub fn assign(kinds: &[u32], slots: &[u32], first_round: usize, fits: impl Fn(usize, usize) -> bool) -> Vec<Vec<u32>> {
    let mut state = Flow { left: kinds.to_vec(), room: slots.to_vec(), flow: vec![vec![0; slots.len()]; kinds.len()] };
    for open in [first_round.min(slots.len()), slots.len()] {
        for kind in 0..kinds.len() {
            state.fill(kind, open, &fits);
        }
        for kind in 0..kinds.len() {
            while state.left[kind] > 0 && state.augment(kind, open, &fits) {}
        }
    }
    state.flow
}

struct Flow {
    left: Vec<u32>,
    room: Vec<u32>,
    flow: Vec<Vec<u32>>,
}

impl Flow {
    /// What fits without moving anything.
    fn fill(&mut self, kind: usize, open: usize, fits: &impl Fn(usize, usize) -> bool) {
        for slot in (0..open).filter(|&slot| fits(kind, slot)) {
            let moved = self.left[kind].min(self.room[slot]);
            self.left[kind] -= moved;
            self.room[slot] -= moved;
            self.flow[kind][slot] += moved;
        }
    }

    /// Place one more item of `kind` along a shortest path that moves others; false when there is none.
    fn augment(&mut self, kind: usize, open: usize, fits: &impl Fn(usize, usize) -> bool) -> bool {
        // For each slot, the kind it was reached from; for each kind, the slot.
        let mut slot_from: Vec<Option<usize>> = vec![None; open];
        let mut kind_from: Vec<Option<usize>> = vec![None; self.left.len()];
        let mut queue = std::collections::VecDeque::from([kind]);
        while let Some(at) = queue.pop_front() {
            for slot in 0..open {
                if slot_from[slot].is_some() || !fits(at, slot) {
                    continue;
                }
                slot_from[slot] = Some(at);
                if self.room[slot] > 0 {
                    self.shift(kind, slot, &slot_from, &kind_from);
                    return true;
                }
                for (other, from) in kind_from.iter_mut().enumerate() {
                    if other != kind && from.is_none() && self.flow[other][slot] > 0 {
                        *from = Some(slot);
                        queue.push_back(other);
                    }
                }
            }
        }
        false
    }

    fn shift(&mut self, kind: usize, end: usize, slot_from: &[Option<usize>], kind_from: &[Option<usize>]) {
        self.room[end] -= 1;
        self.left[kind] -= 1;
        let mut slot = end;
        while let Some(from) = slot_from[slot] {
            self.flow[from][slot] += 1;
            if from == kind {
                return;
            }
            let Some(before) = kind_from[from] else { return };
            self.flow[from][before] -= 1;
            slot = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::assign;

    #[test]
    fn an_item_with_a_choice_makes_way_for_one_without() {
        // Kind 0 fits both slots, kind 1 only the first.
        let flow = assign(&[1, 1], &[1, 1], 2, |kind, slot| kind == 0 || slot == 0);
        assert_eq!(flow, [[0, 1], [1, 0]]);
    }

    #[test]
    fn a_spare_never_takes_from_a_line() {
        let flow = assign(&[3], &[1, 2], 1, |_, _| true);
        assert_eq!(flow, [[1, 2]]);
        let flow = assign(&[1], &[1, 2], 1, |_, _| true);
        assert_eq!(flow, [[1, 0]]);
    }
}
