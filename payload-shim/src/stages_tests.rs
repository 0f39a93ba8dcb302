//! Sorting of roles; links are tested in a slot (`tests/stages.rs`).

use wire::slot::{FdRole, InputLink};

use super::{Stage, Way, sort};

fn link(name: &str) -> InputLink {
    InputLink { name: name.into(), target: b"/x".to_vec() }
}

fn refused(roles: &[FdRole], links: &[InputLink]) -> String {
    let given = roles.iter().cloned().zip(0..).collect::<Vec<(FdRole, i32)>>();
    sort(given, links).expect_err("sorted")
}

#[test]
fn roles_are_sorted_and_stages_keep_their_order() {
    let roles = [FdRole::StageOut("b".into()), FdRole::Stderr, FdRole::StageIn("a".into()), FdRole::Stdin]
        .into_iter()
        .zip(0..);
    let sorted = sort(roles.collect(), &[link("b")]).expect("sorted");
    assert_eq!(sorted.stdio, [Some(3), None, Some(1)]);
    let stages: Vec<_> = sorted.stages.iter().map(|s| (s.way, s.name.as_str(), s.fd)).collect();
    assert_eq!(stages, [(Way::Out, "b", 0), (Way::In, "a", 2)]);
}

#[test]
fn whatever_would_be_ambiguous_is_refused_with_its_name() {
    let twice = |role: FdRole| [role.clone(), role];
    assert_eq!(refused(&twice(FdRole::Stdout), &[]), "two descriptors for stdout");
    assert!(refused(&twice(FdRole::StageIn("a".into())), &[]).contains("LATEBIND_FD_IN_A"));
    let alike = [FdRole::StageOut("a.b".into()), FdRole::StageOut("A-b".into())];
    assert_eq!(refused(&alike, &[]), "stages A-b and a.b would share the variable LATEBIND_FD_OUT_A_B");
    assert_eq!(refused(&[FdRole::StageIn("a".into())], &[link("a")]), "two inputs with the name a");
    assert_eq!(refused(&[], &[link("q"), link("q")]), "two inputs with the name q");
    assert!(refused(&[FdRole::Launch], &[]).contains("launch"));
    let many: Vec<_> = (0..513).map(|n| FdRole::StageIn(format!("n{n}"))).collect();
    assert_eq!(refused(&many, &[]), "more than 512 stages");
}

#[test]
fn a_variable_has_only_capital_letters_digits_and_underscores() {
    let stage = Stage { way: Way::In, name: "hits.v2-final_x".into(), fd: () };
    assert_eq!(stage.variable(), "LATEBIND_FD_IN_HITS_V2_FINAL_X");
}
