//! `pilot schema`: the workflow file's JSON schema.

use pilot_core::RunExit;

/// Prints the schema.
pub fn schema() -> RunExit {
    let text = serde_json::to_string_pretty(&crate::workflow::schema()).unwrap_or_default();
    crate::cli::say(&format!("{text}\n"));
    RunExit::Success
}
