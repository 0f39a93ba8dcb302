use proptest::prelude::*;
use wire::Check;

use super::*;

#[test]
fn a_full_uri_reads_back_as_it_prints() {
    let uri: StageUri = "stage://zpeak/simulate-0/events.v1".parse().expect("uri");
    assert_eq!(uri.to_string(), "stage://zpeak/simulate-0/events.v1");
}

#[test]
fn a_short_uri_belongs_to_the_workflow_that_wrote_it() {
    let zpeak = StageName::new("zpeak").expect("name");
    let uri = StageUri::parse_within(&zpeak, "stage://simulate/events").expect("uri");
    assert_eq!(uri.to_string(), "stage://zpeak/simulate/events");
    let full = StageUri::parse_within(&zpeak, "stage://other/simulate/events").expect("uri");
    assert_eq!(full.workflow.as_str(), "other");
}

#[test]
fn bad_names_and_uris_are_refused() {
    for name in ["", ".", "..", "-a", "_a", "a/b", "a b", "a\0", "ä", "a\n", &"x".repeat(65)] {
        assert!(StageName::new(name).is_err(), "{name:?}");
    }
    for uri in [
        "",
        "stage:/a/b/c",
        "stage://a/b",
        "stage://a/b/c/d",
        "stage://a//c",
        "stage://a/b/",
        "s3://a/b/c",
        "stage://a/../c",
    ] {
        assert!(uri.parse::<StageUri>().is_err(), "{uri:?}");
    }
}

#[test]
fn an_error_names_the_form_that_was_expected() {
    let zpeak = StageName::new("zpeak").expect("name");
    let error = StageUri::parse_within(&zpeak, "stage://only").expect_err("one part");
    assert!(error.to_string().contains("stage://<payload>/<output>"), "{error}");
}

proptest! {
    #[test]
    fn names_are_what_wire_accepts(name in "\\PC{0,70}|[A-Za-z0-9._-]{0,70}") {
        let on_the_wire = wire::slot::FdRole::StageIn(name.clone()).check().is_ok();
        prop_assert_eq!(StageName::new(&name).is_ok(), on_the_wire);
    }

    #[test]
    fn what_parses_prints_as_it_was(uri in "stage://[A-Za-z0-9._/-]{1,40}") {
        if let Ok(parsed) = uri.parse::<StageUri>() {
            prop_assert_eq!(parsed.to_string(), uri);
        }
    }
}
