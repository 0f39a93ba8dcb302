//! Holds a document against the JSON schema and says everything that does not fit.
//!
//! Serde stops at the first unknown field; a person wants to hear of all. The schema comes from the same types that
//! serde fills, so the two can't disagree about a field. Only what schemars writes for those types is understood:
//! `$ref`, `properties`, `required`, `additionalProperties`, `items`, `type`, `enum`, `const`, `oneOf`, `anyOf`,
//! `minimum`, `maximum`, `minItems`; anything else accepts.
//!
//! Must not know: any field by name.

use serde_json::Value as Json;

use super::problem::{Complaints, did_you_mean, either};
use super::tree::{Node, Value};

/// Compares the whole document with the whole schema.
pub(super) fn compare(schema: &Json, document: &Node, complaints: &mut Complaints) {
    Comparison { root: schema, complaints }.node(schema, document, "the file");
}

struct Comparison<'a> {
    root: &'a Json,
    complaints: &'a mut Complaints,
}

impl<'a> Comparison<'a> {
    /// `label` names the node in a message: its key, quoted.
    fn node(&mut self, schema: &'a Json, node: &Node, label: &str) {
        let schema = self.resolved(schema);
        let branches = ["oneOf", "anyOf"].iter().find_map(|key| schema.get(key)?.as_array());
        if let Some(branches) = branches {
            return self.branches(branches, node, label);
        }
        if let Some(values) = literals(schema) {
            return self.literal(&values, node, label);
        }
        let types = types(schema);
        if !types.is_empty() && !types.iter().any(|name| fits(name, &node.value)) {
            let found = node.value.described();
            return self.complaints.add(node.at, format!("{label} is {found}; write {}", wanted(&types)));
        }
        match &node.value {
            Value::Map(entries) => self.map(schema, entries, node, label),
            Value::List(items) => self.list(schema, items, node, label),
            Value::Integer(number) => self.range(schema, *number, node, label),
            Value::Null | Value::Bool(_) | Value::Float(_) | Value::Text(_) => {}
        }
    }

    fn resolved(&self, schema: &'a Json) -> &'a Json {
        let target = schema.get("$ref").and_then(Json::as_str).and_then(|path| path.strip_prefix('#'));
        target.and_then(|pointer| self.root.pointer(pointer)).unwrap_or(schema)
    }

    /// Alternatives are either the literals of an enum, or something and null.
    fn branches(&mut self, branches: &'a [Json], node: &Node, label: &str) {
        let resolved: Vec<&Json> = branches.iter().map(|branch| self.resolved(branch)).collect();
        let values: Option<Vec<&str>> =
            resolved.iter().map(|branch| literals(branch)).collect::<Option<Vec<_>>>().map(|v| v.concat());
        if let Some(values) = values {
            return self.literal(&values, node, label);
        }
        let mut possible =
            resolved.into_iter().filter(|branch| branch.get("type") != Some(&Json::from("null")));
        if matches!(node.value, Value::Null) && possible.clone().count() < branches.len() {
            return;
        }
        if let Some(branch) = possible.next() {
            self.node(branch, node, label);
        }
    }

    fn literal(&mut self, values: &[&str], node: &Node, label: &str) {
        if let Value::Text(text) = &node.value
            && values.contains(&text.as_str())
        {
            return;
        }
        let meant = match &node.value {
            Value::Text(text) => did_you_mean(text, values.iter().copied()),
            _ => String::new(),
        };
        let found = node.value.described();
        self.complaints.add(node.at, format!("{label} is {found}{meant}; write {}", either(values)));
    }

    fn map(
        &mut self,
        schema: &'a Json,
        entries: &[(super::located::Located<String>, Node)],
        node: &Node,
        label: &str,
    ) {
        let no_fields = serde_json::Map::new();
        let fields = schema.get("properties").and_then(Json::as_object);
        let other = schema.get("additionalProperties");
        for (key, value) in entries {
            if let Some(field) = fields.and_then(|fields| fields.get(&key.value)) {
                self.node(field, value, &format!("{:?}", key.value));
            } else if other == Some(&Json::Bool(false)) {
                let known: Vec<&str> = fields.unwrap_or(&no_fields).keys().map(String::as_str).collect();
                let meant = did_you_mean(&key.value, known.iter().copied());
                let text =
                    format!("unknown field {:?}{meant}; known fields here: {}", key.value, known.join(", "));
                self.complaints.add(key.at, text);
            } else if let Some(other) = other {
                self.node(other, value, &format!("{:?}", key.value));
            }
        }
        let required = schema.get("required").and_then(Json::as_array).into_iter().flatten();
        for name in required.filter_map(Json::as_str) {
            if !entries.iter().any(|(key, _)| key.value == name) {
                self.complaints
                    .add(node.at, format!("field {name:?} is missing in {label}; add \"{name}:\""));
            }
        }
    }

    fn list(&mut self, schema: &'a Json, items: &[Node], node: &Node, label: &str) {
        let least = schema.get("minItems").and_then(Json::as_u64).unwrap_or(0);
        if (items.len() as u64) < least {
            self.complaints.add(node.at, format!("{label} is an empty list; add at least {least}"));
        }
        let Some(item_schema) = schema.get("items") else { return };
        for item in items {
            self.node(item_schema, item, &format!("an item of {label}"));
        }
    }

    fn range(&mut self, schema: &Json, number: i128, node: &Node, label: &str) {
        let bound = |key: &str| schema.get(key).and_then(Json::as_i64).map(i128::from);
        let (least, most) = (bound("minimum"), bound("maximum"));
        if least.is_none_or(|least| number >= least) && most.is_none_or(|most| number <= most) {
            return;
        }
        let range = match (least, most) {
            (Some(least), Some(most)) => format!("from {least} to {most}"),
            (Some(least), None) => format!("of at least {least}"),
            (_, most) => format!("of at most {}", most.unwrap_or(i128::MAX)),
        };
        self.complaints.add(node.at, format!("{label} is {number}; write a whole number {range}"));
    }
}

/// The texts that an enum or a constant allows, if it is one.
fn literals(schema: &Json) -> Option<Vec<&str>> {
    if let Some(value) = schema.get("const") {
        return Some(vec![value.as_str()?]);
    }
    schema.get("enum")?.as_array()?.iter().map(Json::as_str).collect()
}

fn types(schema: &Json) -> Vec<&str> {
    match schema.get("type") {
        Some(Json::String(name)) => vec![name],
        Some(Json::Array(names)) => names.iter().filter_map(Json::as_str).collect(),
        _ => Vec::new(),
    }
}

fn fits(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::Integer(_) => matches!(name, "integer" | "number"),
        Value::Float(_) => name == "number",
        Value::Text(_) => name == "string",
        Value::List(_) => name == "array",
        Value::Map(_) => name == "object",
    }
}

fn wanted(types: &[&str]) -> String {
    if ["string", "number", "boolean"].iter().all(|scalar| types.contains(scalar)) {
        return "text or a number".to_owned();
    }
    either(&types.iter().filter_map(|name| human(name)).collect::<Vec<_>>())
}

fn human(name: &str) -> Option<&'static str> {
    match name {
        "boolean" => Some("true or false"),
        "integer" => Some("a whole number"),
        "number" => Some("a number"),
        "string" => Some("text, in quotes if it looks like something else"),
        "array" => Some("a list"),
        "object" => Some("a mapping of fields"),
        _ => None,
    }
}
