//! Hostile bytes at every door: the committed corpus and a fixed number of mutants of it.

use pilot_tests::fuzz::run;
use wire::pilot::{FromPilot, ToPilot};
use wire::slot::{FromShim, Launch, ToShim};

/// Enough that each byte of each seed is hit several times; few enough for seconds in a debug build.
const MUTANTS: u32 = 20_000;

#[test]
fn no_bytes_break_the_decoder_of_messages_to_a_shim() {
    let inputs = run("to_shim", MUTANTS, |bytes| drop(wire::decode::<ToShim>(bytes)));
    assert!(inputs > MUTANTS);
}

#[test]
fn no_bytes_break_the_decoder_of_messages_from_a_shim() {
    let inputs = run("from_shim", MUTANTS, |bytes| drop(wire::decode::<FromShim>(bytes)));
    assert!(inputs > MUTANTS);
}

#[test]
fn no_bytes_break_the_decoder_of_messages_to_a_pilot() {
    let inputs = run("to_pilot", MUTANTS, |bytes| drop(wire::decode::<ToPilot>(bytes)));
    assert!(inputs > MUTANTS);
}

#[test]
fn no_bytes_break_the_decoder_of_messages_from_a_pilot() {
    let inputs = run("from_pilot", MUTANTS, |bytes| drop(wire::decode::<FromPilot>(bytes)));
    assert!(inputs > MUTANTS);
}

#[test]
fn no_bytes_break_the_decoder_of_launches() {
    let inputs = run("launch", MUTANTS, |bytes| drop(wire::decode::<Launch>(bytes)));
    assert!(inputs > MUTANTS);
}

#[test]
fn no_bytes_break_the_reader_of_layers() {
    let inputs = run("layer", MUTANTS / 4, image_store::fuzz::fuzz_layer);
    assert!(inputs > MUTANTS / 4);
}

#[test]
fn no_bytes_break_the_reader_of_image_documents() {
    let inputs = run("document", MUTANTS, image_store::fuzz::fuzz_documents);
    assert!(inputs > MUTANTS);
}

#[test]
fn no_bytes_break_the_reader_of_requests_for_volumes() {
    let inputs = run("csi_publish", MUTANTS, csi_driver::request::fuzz_publish);
    assert!(inputs > MUTANTS);
}

#[test]
fn no_bytes_break_the_reader_of_workflow_files() {
    let inputs = run("workflow", MUTANTS / 4, pilot::workflow::fuzz_workflow);
    assert!(inputs > MUTANTS / 4);
}
