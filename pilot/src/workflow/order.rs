//! Whether the payloads can be put into an order at all.
//!
//! Must not know: names, what an edge stands for.

/// A node's state in the search.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    New,
    Open,
    Done,
}

/// Most cycles that are told; each may be as long as the file.
const CYCLES_MAX: usize = 20;

/// Cycles among nodes of which node `i` needs those in `needs[i]`; each begins with its first node and does not repeat
/// it at the end. Of cycles that share an edge at least one is found. Depth-first with a stack of our own: a chain may
/// be as long as the file.
pub(super) fn cycles(needs: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut marks = vec![Mark::New; needs.len()];
    let mut found = Vec::new();
    for start in 0..needs.len() {
        if marks[start] != Mark::New || found.len() >= CYCLES_MAX {
            continue;
        }
        marks[start] = Mark::Open;
        // The path from the start, each node with how many of its needs were looked at.
        let mut path = vec![(start, 0)];
        while let Some((node, looked)) = path.last_mut() {
            let Some(&next) = needs[*node].get(*looked) else {
                marks[*node] = Mark::Done;
                path.pop();
                continue;
            };
            *looked += 1;
            match marks[next] {
                Mark::New => {
                    marks[next] = Mark::Open;
                    path.push((next, 0));
                }
                Mark::Open if found.len() < CYCLES_MAX => {
                    let from = path.iter().position(|(node, _)| *node == next).unwrap_or(0);
                    found.push(first_in_front(path[from..].iter().map(|(node, _)| *node).collect()));
                }
                Mark::Open | Mark::Done => {}
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

fn first_in_front(mut cycle: Vec<usize>) -> Vec<usize> {
    if let Some(place) = cycle.iter().enumerate().min_by_key(|(_, node)| **node).map(|(place, _)| place) {
        cycle.rotate_left(place);
    }
    cycle
}

#[cfg(test)]
mod tests {
    use super::cycles;

    #[test]
    fn cycles_are_found_once_each_and_begin_with_their_first_node() {
        assert_eq!(cycles(&[vec![], vec![0], vec![0, 1]]), Vec::<Vec<usize>>::new());
        assert_eq!(cycles(&[vec![0]]), [[0]]);
        assert_eq!(cycles(&[vec![1], vec![2], vec![0]]), [[0, 1, 2]]);
        assert_eq!(cycles(&[vec![], vec![3], vec![1], vec![2]]), [[1, 3, 2]]);
        assert_eq!(cycles(&[vec![1], vec![0], vec![3], vec![2]]), [[0, 1], [2, 3]]);
    }

    #[test]
    fn a_long_chain_needs_no_deep_stack() {
        let mut chain: Vec<Vec<usize>> = (1..200_000).map(|next| vec![next]).collect();
        chain.push(Vec::new());
        assert!(cycles(&chain).is_empty());
    }
}
