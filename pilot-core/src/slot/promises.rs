//! What every step of a slot keeps, for an assertion after each. It must not know how a step is decided.

use super::{Action, Order, PhaseName, Slot, Verdict};

impl Slot {
    /// The promises that can be seen in a single step.
    pub(super) fn upholds(&self, from: PhaseName, verdict: &Verdict) -> bool {
        let to = self.name();
        let actions: &[Action] = match verdict {
            Verdict::Acted(actions) => actions,
            Verdict::Ignored(_) => return from == to,
        };
        let count = |wanted: fn(&Action) -> bool| actions.iter().filter(|action| wanted(action)).count();
        let binds = count(|action| matches!(action, Action::Order(Order::Bind(_))));
        let launches = count(|action| matches!(action, Action::Order(Order::Launch(_))));
        let ends = count(|action| matches!(action, Action::Report(_) | Action::Release(_)));
        let released = count(|action| matches!(action, Action::Release(_)));
        binds == usize::from(from == PhaseName::Idle && to == PhaseName::Binding)
            && launches == usize::from(from == PhaseName::Bound && to == PhaseName::Running)
            && ends == usize::from(from == PhaseName::Draining && to == PhaseName::Cleaning)
            && !(self.adopted && released > 0)
            && from.may_become(to)
            && self.deadline().is_none() == matches!(to, PhaseName::Idle | PhaseName::Retired)
    }
}
