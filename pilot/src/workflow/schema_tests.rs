use serde_json::Value;

use super::schema;

fn undescribed(value: &Value, path: &str, found: &mut Vec<String>) {
    if let Some(fields) = value.get("properties").and_then(Value::as_object) {
        for (name, field) in fields {
            if field.get("description").and_then(Value::as_str).is_none_or(str::is_empty) {
                found.push(format!("{path}.{name}"));
            }
        }
    }
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, field)| undescribed(field, &format!("{path}/{name}"), found));
        }
        Value::Array(items) => items.iter().for_each(|item| undescribed(item, path, found)),
        _ => {}
    }
}

#[test]
fn every_field_and_every_type_is_described() {
    let schema = schema();
    let mut found = Vec::new();
    undescribed(&schema, "", &mut found);
    assert_eq!(found, Vec::<String>::new());
    for (name, definition) in schema["$defs"].as_object().expect("there are definitions") {
        assert!(definition["description"].is_string(), "{name}");
    }
}

#[test]
fn no_mapping_lets_unknown_fields_through() {
    let schema = schema();
    let definitions = schema["$defs"].as_object().expect("there are definitions");
    for (name, object) in definitions.iter().filter(|(_, definition)| definition["type"] == "object") {
        assert_eq!(object["additionalProperties"], false, "{name}");
    }
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["properties"]["payloads"]["minItems"], 1);
}

#[test]
fn the_schema_knows_the_units_and_the_bounds() {
    let payload = &schema()["$defs"]["Payload"]["properties"];
    assert_eq!(payload["count"]["minimum"], 1);
    assert_eq!(payload["count"]["maximum"], 100_000);
    assert_eq!(payload["walltime"]["type"], serde_json::json!(["string", "number", "boolean", "null"]));
}
