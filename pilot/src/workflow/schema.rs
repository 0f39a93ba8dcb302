//! The JSON schema of the workflow file, generated from the types of [`super::model`].
//!
//! Must not know: any field by name.

use std::sync::LazyLock;

use serde_json::Value;

use super::model::Workflow;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut schema = schemars::schema_for!(Workflow).into();
    unwrap_descriptions(&mut schema);
    schema
});

/// Descriptions come with the line breaks of our source, which mean nothing to a reader.
fn unwrap_descriptions(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            fields.values_mut().for_each(unwrap_descriptions);
        }
        Value::Array(items) => items.iter_mut().for_each(unwrap_descriptions),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The schema (JSON Schema draft 2020-12), with every field described. For `pilot schema`, and for editors that check
/// YAML while it is typed.
pub fn schema() -> Value {
    SCHEMA.clone()
}

/// The same, without a copy.
pub(super) fn schema_ref() -> &'static Value {
    &SCHEMA
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
