use super::super::tests::{plan, with_payloads, wrong_payloads};

/// The gangs of the payloads, by their names.
fn gangs(lines: &str) -> Vec<String> {
    let plan = plan(&with_payloads(lines)).expect("the workflow is right");
    let name = |index: &usize| plan.payloads[*index].name.as_str();
    let named = |gang: &Vec<usize>| gang.iter().map(name).collect::<Vec<_>>().join(" ");
    let mut all: Vec<String> = plan
        .payloads
        .iter()
        .map(|payload| &payload.gang)
        .filter(|gang| !gang.is_empty())
        .map(named)
        .collect();
    all.dedup();
    all
}

const IMAGE: &str = "image: i";

#[test]
fn payloads_that_pipes_connect_run_together_and_wait_for_the_same() {
    let lines = format!(
        "- {{name: make, {IMAGE}, outputs: [{{name: f}}]}}\n\
         - {{name: a, {IMAGE}, outputs: [{{name: x, class: pipe}}]}}\n\
         - {{name: b, {IMAGE}, inputs: [{{name: x, from: \"stage://a/x\"}}, {{name: f, from: \"stage://make/f\"}}], outputs: [{{name: y, class: pipe}}]}}\n\
         - {{name: c, {IMAGE}, inputs: [{{name: y, from: \"stage://b/y\"}}]}}\n\
         - {{name: after, {IMAGE}, after: [a]}}\n"
    );
    assert_eq!(gangs(&lines), ["a b c"]);
    let plan = plan(&with_payloads(&lines)).expect("right");
    let needs: Vec<&[usize]> = plan.payloads.iter().map(|payload| &payload.needs[..]).collect();
    assert_eq!(needs, [&[][..], &[0], &[0], &[0], &[1]]);
}

#[test]
fn arrays_are_paired_element_by_element_shared_by_all_or_gathered() {
    let paired = format!(
        "- {{name: a, {IMAGE}, count: 2, outputs: [{{name: x, class: pipe}}]}}\n\
         - {{name: b, {IMAGE}, count: 2, inputs: [{{name: x, from: \"stage://a/x\", scatter: true}}]}}\n"
    );
    assert_eq!(gangs(&paired), ["a-0 b-0", "a-1 b-1", "a-0 b-0", "a-1 b-1"]);
    let shared = format!(
        "- {{name: a, {IMAGE}, outputs: [{{name: x, class: shared, max_size: 1Mi}}]}}\n\
         - {{name: b, {IMAGE}, count: 3, inputs: [{{name: x, from: \"stage://a/x\"}}]}}\n"
    );
    assert_eq!(gangs(&shared), ["a b-0 b-1 b-2"]);
    let gathered = format!(
        "- {{name: a, {IMAGE}, count: 2, outputs: [{{name: x, class: pipe}}]}}\n\
         - {{name: b, {IMAGE}, inputs: [{{name: x, from: \"stage://a/x\"}}]}}\n"
    );
    assert_eq!(gangs(&gathered), ["a-0 a-1 b"]);
}

#[test]
fn pipes_may_go_both_ways() {
    let lines = format!(
        "- {{name: a, {IMAGE}, inputs: [{{name: y, from: \"stage://b/y\"}}], outputs: [{{name: x, class: pipe}}]}}\n\
         - {{name: b, {IMAGE}, inputs: [{{name: x, from: \"stage://a/x\"}}], outputs: [{{name: y, class: pipe}}]}}\n"
    );
    assert_eq!(gangs(&lines), ["a b"]);
}

#[test]
fn a_pipe_has_one_reader_and_is_neither_saved_nor_measured() {
    wrong_payloads(
        "- {name: a, image: i, outputs: [{name: x, class: pipe}, {name: s, class: shared, max_size: 1}]}\n",
        &[
            "4:40: nobody reads the pipe \"x\"; let another payload read it",
            "4:64: nobody shares output \"s\"; let another payload read it",
        ],
    );
    wrong_payloads(
        "- {name: a, image: i, outputs: [{name: x, class: pipe}]}\n\
         - {name: b, image: i, count: 2, inputs: [{name: x, from: \"stage://a/x\"}]}\n",
        &[
            "4:40: the pipe \"x\" has 2 readers, and only one can have what goes through it; use class file, or a pipe for each",
        ],
    );
    wrong_payloads(
        "- {name: a, image: i, outputs: [{name: x, class: pipe, save: x, max_size: 1}, {name: y, class: shared}]}\n",
        &[
            "4:62: output \"x\" of class pipe is not kept; let a payload that reads it write a file, and save that",
            "4:75: output \"x\" is a pipe and has no size; remove \"max_size\"",
            "4:86: output \"y\" of class shared needs its size; add \"max_size\", such as 64Mi",
        ],
    );
}

#[test]
fn arrays_whose_pairing_is_unclear_are_refused() {
    let unclear = "it is not clear which of \"a\" runs with which of \"b\"; give both the same \"count\" and add \"scatter: true\"";
    for (count, scatter) in [(2, "false"), (3, "true")] {
        wrong_payloads(
            &format!(
                "- {{name: a, image: i, count: {count}, outputs: [{{name: x, class: pipe}}]}}\n\
                 - {{name: b, image: i, count: 2, inputs: [{{name: x, from: \"stage://a/x\", scatter: {scatter}}}]}}\n"
            ),
            &[&format!("5:49: {unclear}")],
        );
    }
    wrong_payloads(
        "- {name: a, image: i, inputs: [{name: x, from: \"stage://a/x\"}], outputs: [{name: x, class: pipe}]}\n",
        &["4:39: \"a\" reads its own output \"x\"; remove this input"],
    );
}

#[test]
fn one_that_waits_for_the_end_of_its_own_gang_is_refused_directly_and_through_others() {
    let waits = |line: u32, column: u32, name: &str, mates: &str| {
        format!(
            "{line}:{column}: \"{name}\" waits for the end of a payload that waits for it: it runs together with {mates}, and none of them \
             starts before all can; connect them by pipe or shared outputs only"
        )
    };
    wrong_payloads(
        "- {name: a, image: i, outputs: [{name: x, class: pipe}, {name: f}]}\n\
         - {name: b, image: i, inputs: [{name: x, from: \"stage://a/x\"}, {name: f, from: \"stage://a/f\"}]}\n",
        &[&waits(5, 10, "b", "a")],
    );
    wrong_payloads(
        "- {name: a, image: i, outputs: [{name: x, class: pipe}, {name: f}]}\n\
         - {name: via, image: i, after: [a]}\n\
         - {name: b, image: i, inputs: [{name: x, from: \"stage://a/x\"}], after: [via]}\n",
        &[&waits(6, 10, "b", "a")],
    );
}

#[test]
fn more_than_sixty_four_are_too_many() {
    let lines = |count: u32| {
        format!(
            "- {{name: a, image: i, outputs: [{{name: x, class: shared, max_size: 1}}]}}\n\
             - {{name: b, image: i, count: {count}, inputs: [{{name: x, from: \"stage://a/x\"}}]}}\n"
        )
    };
    assert_eq!(gangs(&lines(63)).len(), 1);
    wrong_payloads(
        &lines(64),
        &[
            "4:10: with \"a\" 65 payloads would run together, at most 64 can; connect fewer by pipe and shared outputs",
        ],
    );
}
