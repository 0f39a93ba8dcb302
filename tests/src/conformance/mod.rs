//! What every adapter of a port promises, as tests that each adapter runs: the fakes too, so that what is tested with them
//! is true of the real ones.
//!
//! Each function is one promise. `tests/conformance.rs` runs all of them for all adapters.
//!
//! **Must not know:** any adapter.

pub mod queue;
pub mod runtime;
pub mod stages;

/// Calls a macro with the promises of the Runtime port, so that no adapter's list can fall behind.
#[macro_export]
macro_rules! runtime_promises {
    ($then:ident) => {
        $then!([
            runtime::an_image_is_prepared_once,
            runtime::the_exit_code_is_told,
            runtime::a_missing_program_ends_with_127,
            runtime::term_ends_a_payload_that_obeys,
            runtime::kill_ends_a_payload_that_ignores_term,
            runtime::calls_about_an_empty_slot_are_harmless,
            stages::a_file_stage_is_handed_on,
            stages::a_memory_stage_is_handed_on,
            stages::a_value_is_handed_on,
            stages::an_output_that_is_not_committed_is_dropped,
            stages::a_second_commit_replaces_the_first,
            stages::a_stage_goes_with_its_last_reader,
            runtime::a_cleaned_slot_holds_no_trace,
            runtime::slots_side_by_side_see_nothing_of_each_other,
            runtime::a_bind_dropped_at_any_await_can_be_undone,
            runtime::a_launch_dropped_at_any_await_can_be_undone,
            runtime::a_drain_and_a_clean_dropped_at_any_await_can_be_made_good,
            runtime::a_drain_ends_what_still_runs,
        ]);
    };
}
