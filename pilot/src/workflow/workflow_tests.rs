use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::{
    Disk, FileKind, HostFiles, LoadError, Plan, Problems, TEXT_BYTES_MAX, check, fuzz_workflow, load,
};

/// A machine with the files `/flow/data`, `/flow/device` (no file) and the folder `/flow/many` of five.
pub(super) struct Fake;

impl HostFiles for Fake {
    fn kind(&self, path: &Path) -> io::Result<FileKind> {
        match path.to_str().unwrap_or_default() {
            "/flow/data" => Ok(FileKind::File),
            "/flow/many" => Ok(FileKind::Folder),
            "/flow/device" => Ok(FileKind::Other),
            path if path.starts_with("/flow/many/") => Ok(FileKind::File),
            path if path.starts_with("/root/") => Err(io::ErrorKind::PermissionDenied.into()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn names(&self, folder: &Path, max: usize) -> io::Result<Vec<OsString>> {
        let names = if folder == Path::new("/flow/many") { &["e", "b", "d", "a", "c"][..] } else { &[] };
        Ok(names.iter().take(max).map(OsString::from).collect())
    }
}

/// A workflow with these lines below `payloads:`.
pub(super) fn with_payloads(lines: &str) -> String {
    format!("apiVersion: latebind/v1\nmetadata: {{name: w}}\npayloads:\n{lines}")
}

pub(super) fn plan(text: &str) -> Result<Plan, String> {
    check(text.as_bytes(), Path::new("/flow"), &Fake)
        .map_err(|list| Problems { file: PathBuf::from("w.yaml"), list }.to_string())
}

#[track_caller]
fn wrong(text: &str, expected: &[&str]) {
    let told = plan(text).expect_err("the workflow is wrong");
    let expected: Vec<String> = expected.iter().map(|line| format!("w.yaml:{line}")).collect();
    assert_eq!(told.lines().collect::<Vec<_>>(), expected, "\n{told}\n");
}

/// Lines below `payloads:`, which is line 3.
#[track_caller]
pub(super) fn wrong_payloads(lines: &str, expected: &[&str]) {
    wrong(&with_payloads(lines), expected);
}

#[test]
fn a_file_that_is_no_workflow_is_told_in_one_line() {
    wrong("", &["1:1: the file is empty; begin with \"apiVersion: latebind/v1\""]);
    wrong("# nothing\n", &["1:1: the file is empty; begin with \"apiVersion: latebind/v1\""]);
    wrong("- a\n", &["1:1: the file is a list; write a mapping of fields"]);
    wrong(
        "a: [1, 2",
        &["1:4: not a readable workflow: unclosed bracket '['; correct the YAML here or just above"],
    );
    wrong(
        "a: b: c",
        &[
            "1:5: not a readable workflow: mapping values are not allowed in this context; correct the YAML here or just above",
        ],
    );
    wrong("a: 1\na: 2", &["2:1: field \"a\" is written twice; remove one of the two"]);
    wrong(
        "a: *b",
        &["1:4: not a readable workflow: reference to unknown value; define the anchor before it is used"],
    );
    wrong(
        "a: !thing b",
        &["1:11: not a readable workflow: unsupported tag `!thing`; correct the YAML here or just above"],
    );
    wrong("a: 1\n---\nb: 2\n", &["3:1: a second document begins here; write one workflow a file"]);
    wrong(
        "apiVersion: latebind/v2\nkind: Job\nmetadata: {}\npayloads: []\n",
        &[
            "1:13: \"apiVersion\" is \"latebind/v2\" (did you mean \"latebind/v1\"?); write latebind/v1",
            "2:7: \"kind\" is \"Job\"; write Workflow",
            "3:11: field \"name\" is missing in \"metadata\"; add \"name:\"",
            "4:11: \"payloads\" is an empty list; add at least 1",
        ],
    );
}

#[test]
fn unknown_fields_name_the_nearest_and_all_known_ones() {
    wrong(
        r#"apiVersion: latebind/v1
metdata: {name: w}
metadata: {name: w, label: x}
payloads: [{name: a, image: i, output: [{nmae: x, clas: mem}], resources: {ram: 1}}]"#,
        &[
            "2:1: unknown field \"metdata\" (did you mean \"metadata\"?); known fields here: apiVersion, defaults, kind, metadata, payloads",
            "3:21: unknown field \"label\"; known fields here: name",
            "4:32: unknown field \"output\" (did you mean \"outputs\"?); known fields here: after, args, at_most_once, command, count, cwd, env, grace, image, inputs, name, network, outputs, resources, retries, rootfs, trust_group, user, walltime",
            "4:76: unknown field \"ram\"; known fields here: cpu, disk, memory",
        ],
    );
}

#[test]
fn fields_of_the_wrong_type_are_all_told() {
    wrong_payloads(
        r#"- name: [a]
  image: 5
  count: 0
  retries: many
  args: ls -l
  env: {A: [1], B: ~}
  at_most_once: yes
  rootfs: rw
  outputs: [{name: x, class: memory}]
  inputs:
"#,
        &[
            "4:9: \"name\" is a list; write text, in quotes if it looks like something else",
            "5:10: \"image\" is 5; write text, in quotes if it looks like something else",
            "6:10: \"count\" is 0; write a whole number from 1 to 100000",
            "7:12: \"retries\" is \"many\"; write a whole number",
            "8:9: \"args\" is \"ls -l\"; write a list",
            "9:12: \"A\" is a list; write text or a number",
            "9:20: \"B\" is empty; write text or a number",
            "10:17: \"at_most_once\" is \"yes\"; write true or false",
            "11:11: \"rootfs\" is \"rw\"; write read-only or writable",
            "12:30: \"class\" is \"memory\"; write file, mem, folder, value, pipe or shared",
            "13:9: \"inputs\" is empty; write a list",
        ],
    );
    wrong_payloads(
        "- {name: a, image: i, count: 100001, retries: 101, args: [[x]], walltime: {s: 1}}\n- b\n",
        &[
            "4:30: \"count\" is 100001; write a whole number from 1 to 100000",
            "4:47: \"retries\" is 101; write a whole number from 0 to 100",
            "4:59: an item of \"args\" is a list; write text or a number",
            "4:75: \"walltime\" is a mapping; write text or a number",
            "5:3: an item of \"payloads\" is \"b\"; write a mapping of fields",
        ],
    );
    wrong_payloads(
        "- {name: a, image: i, count: 99999999999999999999999999999999999999999999, retries: 1.5}\n",
        &[
            "4:30: \"count\" is 100000000000000000000000000000000000000000000; write a whole number",
            "4:85: \"retries\" is 1.5; write a whole number",
        ],
    );
}

#[test]
fn names_and_images_are_checked() {
    wrong_payloads(
        "- {name: a b, image: i}\n- {name: .a, image: \"i\\tj\"}\n- {name: a, image: ''}\n- {name: a}\n",
        &[
            "4:10: payload \"a b\" is no name; use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit",
            "5:10: payload \".a\" is no name; use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit",
            "5:21: image \"i\\tj\" is no image reference; write docker://<registry>/<name>:<tag>, oci:<folder>[:<tag>], oci-archive:<file>[:<tag>] or docker-archive:<file>",
            "6:20: image \"\" is no image reference; write docker://<registry>/<name>:<tag>, oci:<folder>[:<tag>], oci-archive:<file>[:<tag>] or docker-archive:<file>",
            "7:3: payload \"a\" has no image; add \"image:\" here or in \"defaults\"",
            "7:10: two payloads are called \"a\"; rename one",
        ],
    );
    wrong_payloads(
        "- {name: a, image: i, count: 2}\n- {name: a-1, image: i}\n- {name: a-2, image: i}\n",
        &["5:10: payload \"a-1\" is also an element of the array \"a\"; rename one"],
    );
    let long = "n".repeat(63);
    wrong_payloads(
        &format!("- {{name: {long}, image: i, count: 11}}\n"),
        &[
            "4:10: \"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn-10\" is too long for a name; shorten \"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\"",
        ],
    );
    wrong(
        "apiVersion: latebind/v1\nmetadata: {name: a/b}\npayloads: [{name: a, image: i}]",
        &[
            "2:18: workflow \"a/b\" is no name; use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit",
        ],
    );
}

#[test]
fn units_are_checked() {
    wrong_payloads(
        r#"- name: a
  image: i
  walltime: 90
  grace: 25h
  user: root
  cwd: work
  resources: {cpu: 0, memory: 1GB, disk: -1}
  outputs: [{name: x, max_size: 0}]
- name: b
  image: i
  user: 1:4294967295
  walltime: 5 min
  resources: {cpu: two, memory: 4000000Ti}
"#,
        &[
            "6:13: walltime \"90\" has no unit; write 90s, 5m, 2h or 1h30m",
            "7:10: grace \"25h\" is longer than a day; write less",
            "8:9: user \"root\" is no user; write image, <uid> or <uid>:<gid> in numbers",
            "9:8: cwd \"work\" is no absolute path; begin it with /",
            "10:20: cpu \"0\" is not between 1m and 65536; write 2, 0.5 or 500m",
            "10:31: memory \"1GB\" is no size; write bytes, or a number with Ki, Mi, Gi, Ti, k, M, G or T",
            "10:42: disk \"-1\" is no size; write bytes, or a number with Ki, Mi, Gi, Ti, k, M, G or T",
            "11:33: max_size \"0\" is not between 1 byte and 1Ei; write 512Mi or 1G",
            "14:9: user \"1:4294967295\" is no user; write image, <uid> or <uid>:<gid> in numbers",
            "15:13: walltime \"5 min\" is not a duration; write 90s, 5m, 2h or 1h30m",
            "16:20: cpu \"two\" is no number of processors; write 2, 0.5 or 500m",
            "16:33: memory \"4000000Ti\" is not between 1 byte and 1Ei; write 512Mi or 1G",
        ],
    );
}

#[test]
fn commands_and_variables_are_checked() {
    wrong_payloads(
        r#"- name: a
  image: i
  command: []
  env: {LATEBIND_INDEX: 1, 'A=B': x, '': y}
- name: b
  image: i
  command: ['']
  args: ["a\0b"]
  at_most_once: true
  retries: 2
"#,
        &[
            "6:12: \"command\" is empty; name a program, or leave it out for the image's own",
            "7:25: environment variable \"LATEBIND_INDEX\" is set by the pilot; choose a name that does not begin with LATEBIND_",
            "7:35: \"A=B\" is no name of an environment variable; use a name without '=' and spaces",
            "7:42: \"\" is no name of an environment variable; use a name without '=' and spaces",
            "10:13: the program's name is empty; name a program",
            "11:10: an argument contains a NUL character; remove it",
            "13:12: \"retries\" contradicts \"at_most_once\"; remove one of the two",
        ],
    );
}

#[test]
fn inputs_must_exist() {
    wrong_payloads(
        r#"- name: a
  image: i
  inputs:
  - {name: a, from: ./absent}
  - {name: b, from: /root/secret}
  - {name: c, from: ./device}
  - {name: d, from: data}
  - {name: e, from: 'file://host/data'}
  - {name: f, from: './none/*'}
  - {name: g, from: 'file:'}
  - {name: h, from: 'ftp://bucket/x'}
"#,
        &[
            "7:21: input file \"/flow/absent\" can't be used (it does not exist); correct the path",
            "8:21: input file \"/root/secret\" can't be used (permission denied); correct the path",
            "9:21: \"/flow/device\" is neither a file nor a folder; inputs are one of these",
            "10:21: \"data\" says not where the data is; write stage://<payload>/<output>, ./path, /path, file:path or s3://<bucket>/<key>",
            "11:21: \"file://host/data\" names another machine; write file:/path or file:path",
            "12:21: no file or folder matches \"./none/*\"; correct the pattern",
            "13:21: \"file:\" says not where the data is; write stage://<payload>/<output>, ./path, /path, file:path or s3://<bucket>/<key>",
            "14:21: \"ftp://bucket/x\" says not where the data is; write stage://<payload>/<output>, ./path, /path, file:path or s3://<bucket>/<key>",
        ],
    );
}

#[test]
fn stage_names_must_exist() {
    wrong_payloads(
        r#"- name: simulate
  image: i
  count: 4
  outputs: [{name: events}, {name: log}]
- name: fit
  image: i
  inputs:
  - {name: a, from: 'stage://simulat/events'}
  - {name: b, from: 'stage://simulate/event'}
  - {name: c, from: 'stage://simulate-4/events'}
  - {name: d, from: 'stage://other/simulate/events'}
  - {name: e, from: 'stage://simulate'}
  - {name: f, from: 'stage://fit/x'}
  - {name: g, from: 'stage://simulate-01/log'}
  after: [simulate-9, nobody]
"#,
        &[
            "11:21: there is no payload \"simulat\" (did you mean \"simulate\"?); name a payload of this file",
            "12:21: payload \"simulate\" has no output \"event\" (did you mean \"events\"?); it has events, log",
            "13:21: there is no payload \"simulate-4\"; \"simulate\" goes from simulate-0 to simulate-3",
            "14:21: \"other\" is another workflow than \"w\"; save its output and read the file",
            "15:21: \"stage://simulate\" is no stage; write stage://<payload>/<output>",
            "16:21: payload \"fit\" has no output \"x\"; it has none",
            "17:21: there is no payload \"simulate-01\" (did you mean \"simulate\"?); name a payload of this file",
            "18:11: there is no payload \"simulate-9\"; \"simulate\" goes from simulate-0 to simulate-3",
            "18:23: there is no payload \"nobody\"; name a payload of this file",
        ],
    );
}

#[test]
fn cycles_are_written_out() {
    wrong_payloads(
        r#"- {name: a, image: i, inputs: [{name: x, from: 'stage://b/x'}], outputs: [{name: x}]}
- {name: b, image: i, after: [c], outputs: [{name: x}]}
- {name: c, image: i, after: [a]}
- {name: d, image: i, count: 3, after: [d-1]}
"#,
        &[
            "4:10: payloads wait for each other: a -> b -> c -> a; remove one of these inputs or \"after\"",
            "7:10: payloads wait for each other: d -> d; remove one of these inputs or \"after\"",
        ],
    );
}

#[test]
fn duplicates_and_collisions_are_told() {
    wrong_payloads(
        r#"- name: s
  image: i
  count: 3
  outputs: [{name: x, class: mem}, {name: x}, {name: a.b, class: mem}, {name: A-B, class: mem}]
- name: f
  image: i
  inputs:
  - {name: x, from: 'stage://s/x'}
  - {name: x-1, from: ./data}
  - {name: X.0, from: 'stage://s-0/x'}
"#,
        &[
            "7:43: two outputs are called \"x\"; rename one",
            "7:79: \"a.b\" and \"A-B\" would both be LATEBIND_FD_OUT_A_B; rename one",
            "12:12: two inputs are called \"x-1\"; rename one",
            "13:12: \"x-0\" and \"X.0\" would both be LATEBIND_FD_IN_X_0; rename one",
        ],
    );
}

#[test]
fn a_value_is_small() {
    wrong_payloads(
        "- {name: a, image: i, outputs: [{name: x, class: value, max_size: 65Ki}, {name: y, class: value, max_size: 64Ki}, {name: z, class: value}]}\n",
        &["4:67: value \"x\" may have 65536 bytes at most; lower its max_size, or make it class mem or file"],
    );
}

#[test]
fn saves_stay_in_the_folder_for_results() {
    wrong_payloads(
        r#"- name: a
  image: i
  outputs: [{name: a, save: ../x}, {name: b, save: /etc/x}, {name: c, save: ''}, {name: d, save: out/}, {name: e, save: ./y}]
- name: b
  image: i
  count: 2
  outputs: [{name: a, save: y}]
"#,
        &[
            "6:29: save \"../x\" is no path inside the folder for results; write a relative path to a file, without .., or s3://<bucket>/<key>",
            "6:52: save \"/etc/x\" is no path inside the folder for results; write a relative path to a file, without .., or s3://<bucket>/<key>",
            "6:77: save \"\" is no path inside the folder for results; write a relative path to a file, without .., or s3://<bucket>/<key>",
            "6:98: save \"out/\" is no path inside the folder for results; write a relative path to a file, without .., or s3://<bucket>/<key>",
            "10:29: \"y\" is also saved at line 6; choose another path",
            "10:29: all elements of the array would be saved to \"y\"; put {index} into it",
        ],
    );
}

#[test]
fn a_url_names_an_object() {
    wrong_payloads(
        r#"- name: a
  image: i
  inputs: [{name: a, from: 's3://data'}, {name: b, from: 's3://data/../x'}]
  outputs: [{name: a, save: 's3://Data/x'}, {name: b, save: 'file://x'}]
- {name: b, image: i, count: 2, outputs: [{name: a, save: 's3://data/y'}]}
"#,
        &[
            "6:28: read \"s3://data\": write s3://BUCKET/KEY or file:///ABSOLUTE/PATH",
            "6:58: read \"s3://data/../x\": no part of the name may be empty, \".\" or \"..\"",
            "7:29: save: read \"s3://Data/x\": a bucket has 3 to 63 of a-z, 0-9, '-' and '.', and begins and ends with a letter or digit",
            "7:61: save: read \"file://x\": write file:// and an absolute path, with three slashes",
            "8:59: all elements of the array would be saved to \"s3://data/y\"; put {index} into it",
        ],
    );
}

#[test]
fn scatter_needs_an_array_and_enough_to_deal_out() {
    wrong_payloads(
        r#"- {name: s, image: i, count: 3, outputs: [{name: x}]}
- {name: a, image: i, inputs: [{name: x, from: 'stage://s/x', scatter: true}]}
- {name: b, image: i, count: 4, inputs: [{name: x, from: 'stage://s/x', scatter: true}]}
- {name: c, image: i, count: 2, inputs: [{name: x, from: 'stage://s-1/x', scatter: true}, {name: y, from: './many/*', scatter: false}]}
"#,
        &[
            "5:72: \"a\" is no array, so nothing can be dealt out; remove \"scatter\" or add \"count\"",
            "6:82: input \"x\" has 3 to deal out to 4 elements; make \"count\" at most 3",
            "7:84: input \"x\" is a single thing; remove \"scatter\", or name an array's output or a pattern of files",
        ],
    );
}

#[test]
fn an_input_is_mounted_where_its_payload_wants_it() {
    let plan = plan(&with_payloads(
        r#"- {name: s, image: i, count: 2, outputs: [{name: x}]}
- name: a
  image: i
  count: 2
  inputs:
  - {name: f, from: ./data, at: /etc/app.json}
  - {name: d, from: ./many, at: /data}
  - {name: one, from: 'stage://s-1/x', at: /data-1/x}
  - {name: each, from: 'stage://s/x', scatter: true, at: /data-2}
  - {name: all, from: 'stage://s/x'}
"#,
    ))
    .expect("it is right");
    let at = |payload: usize| {
        let inputs = plan.payloads[payload].inputs.iter();
        let mounted = inputs.filter_map(|input| Some((input.name.as_str(), input.at.as_ref()?.as_str())));
        mounted.collect::<Vec<_>>()
    };
    let expected = [("f", "/etc/app.json"), ("d", "/data"), ("one", "/data-1/x"), ("each", "/data-2")];
    assert_eq!((at(0), at(2), at(3)), (vec![], expected.to_vec(), expected.to_vec()));
}

#[test]
fn mounts_that_can_not_be_are_told() {
    wrong_payloads(
        r#"- {name: s, image: i, count: 3, outputs: [{name: x}, {name: m, class: mem}]}
- name: a
  image: i
  inputs:
  - {name: a, from: ./data, at: data}
  - {name: b, from: ./data, at: /data/}
  - {name: c, from: ./data, at: /data/../x}
  - {name: d, from: ./data, at: /}
  - {name: e, from: ./data, at: /tmp/x}
  - {name: f, from: ./data, at: /etc}
  - {name: g, from: 'stage://s-0/m', at: /m}
  - {name: h, from: 'stage://s/x', at: /x}
  - {name: i, from: './many/*', at: /y}
- name: b
  image: i
  count: 2
  inputs:
  - {name: a, from: ./data, at: /data}
  - {name: b, from: ./many, at: /data}
  - {name: c, from: ./many, at: /data/deep}
  - {name: d, from: ./many, at: /data-deep}
  - {name: e, from: 'stage://s/x', scatter: true, at: /e}
"#,
        &[
            "8:33: at \"data\" is no plain absolute path; write it like /data/calib, without \"..\", \"//\", \":\", \",\" and \"/\" at the end",
            "9:33: at \"/data/\" is no plain absolute path; write it like /data/calib, without \"..\", \"//\", \":\", \",\" and \"/\" at the end",
            "10:33: at \"/data/../x\" is no plain absolute path; write it like /data/calib, without \"..\", \"//\", \":\", \",\" and \"/\" at the end",
            "11:33: at \"/\" would lie in, or cover, the slot's own /stage; choose another path, such as /data/calib",
            "12:33: at \"/tmp/x\" would lie in, or cover, the slot's own /tmp; choose another path, such as /data/calib",
            "13:33: at \"/etc\" would lie in, or cover, the slot's own /etc/hosts; choose another path, such as /data/calib",
            "14:42: input \"g\" is no file, so it can't be mounted; remove \"at\", or make output \"m\" of \"s\" class file",
            "15:40: input \"h\" stands for several, which can't all be at one path; remove \"at\", or let \"from\" name a single file, folder or output",
            "16:37: input \"i\" stands for several, which can't all be at one path; remove \"at\", or let \"from\" name a single file, folder or output",
            "22:33: two inputs are at \"/data\"; choose another path for one",
            "23:33: \"/data/deep\" and \"/data\" lie in one another; choose paths side by side",
            "25:55: input \"e\" stands for several, which can't all be at one path; remove \"at\", or let \"from\" name a single file, folder or output",
        ],
    );
}

#[test]
fn sizes_are_bounded() {
    wrong_payloads(
        r#"- {name: a, image: i, count: 100000, outputs: [{name: x}]}
- {name: b, image: i, count: 100000, after: [a]}
- {name: c, image: i, count: 100000}
- {name: d, image: i, inputs: [{name: x, from: 'stage://a/x'}]}
"#,
        &[
            "4:3: there are 300001 payloads, at most 250000 are possible; make an array smaller",
            "5:10: with this payload there are 10000000000 inputs and \"after\", at most 1000000 are possible; let one payload gather an array before another array follows",
            "7:10: \"d\" has 100000 inputs and outputs, at most 512 are possible; take a whole folder as one input, or scatter over more elements",
        ],
    );
}

#[test]
fn text_that_is_not_utf_8_has_a_place() {
    let problems = check(b"a: b\n  \xc3\xa9 \xff", Path::new("/flow"), &Fake).expect_err("it is no text");
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].at.to_string(), "2:5");
    assert_eq!(problems[0].text, "the file is not UTF-8 text; save it as UTF-8");
}

#[test]
fn a_file_that_grows_in_memory_is_refused() {
    let many = "- {name: a, image: i}\n".repeat(150_000);
    let told = plan(&with_payloads(&many)).expect_err("too many nodes");
    assert!(told.contains("too large or too deep"), "{told}");
    let long = format!("a: {}", "x".repeat(TEXT_BYTES_MAX));
    wrong(&long, &["1:1: the file is longer than 8388608 bytes; split the workflow"]);
    let aliases = format!("- {{name: &n {}, image: i}}\n", "x".repeat(1 << 20));
    let bomb = format!("{aliases}- {{name: a, image: i, args: [{}]}}\n", "*n,".repeat(9000));
    let told = plan(&with_payloads(&bomb)).expect_err("too many bytes");
    assert!(told.contains("too large or too deep"), "{told}");
    let deep = format!("a: {}{}", "[".repeat(5000), "]".repeat(5000));
    assert!(plan(&deep).is_err());
}

#[test]
fn more_problems_than_anyone_reads_are_cut() {
    let many = "- {name: a, image: i, x: 1}\n".repeat(5000);
    let told = plan(&with_payloads(&many)).expect_err("unknown fields");
    assert_eq!(told.lines().count(), 101);
    assert!(told.ends_with("there is more wrong from here on; mend the lines above first"));
}

#[test]
fn control_characters_of_the_file_do_not_reach_the_terminal() {
    let told = plan(&with_payloads("- {name: \"a\\e[2J\\n\", image: i}")).expect_err("no name");
    assert!(!told.contains(char::is_control), "{told:?}");
}

#[test]
fn a_file_is_read_from_disk_and_its_inputs_are_found_beside_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("flow.yaml");
    std::fs::write(folder.path().join("table.csv"), "1,2").expect("a file");
    let text = with_payloads("- {name: a, image: i, inputs: [{name: t, from: ./table.csv}]}\n");
    std::fs::write(&file, text).expect("a file");
    let plan = load(&file, &Disk).expect("it is right");
    let folder_path = std::path::absolute(folder.path()).expect("a path");
    assert_eq!(plan.folder, folder_path);
    assert_eq!(plan.payloads[0].inputs[0].source, super::InputSource::Host(folder_path.join("table.csv")));
    std::fs::write(&file, "a: 1").expect("a file");
    let invalid = load(&file, &Disk).expect_err("it is wrong").to_string();
    assert!(invalid.starts_with(&format!("{}:1:1: ", file.display())), "{invalid}");
    let absent = load(&folder.path().join("absent.yaml"), &Disk).expect_err("it is absent");
    assert!(
        matches!(&absent, LoadError::Read { .. }) && absent.to_string().starts_with("read workflow file ")
    );
}

/// Has every field of the format, so that mutations of it reach every check.
const EVERYTHING: &str = include_str!("everything.yaml");

#[test]
fn the_example_with_every_field_is_right() {
    let plan = plan(EVERYTHING).expect("it is right");
    assert_eq!(plan.payloads.len(), 13);
    let used = |name: &str| EVERYTHING.contains(&format!("{name}:"));
    let schema = super::schema();
    for kind in ["Metadata", "Defaults", "Payload", "Resources", "Input", "Output"] {
        let fields = schema["$defs"][kind]["properties"].as_object().expect("fields");
        for name in fields.keys() {
            assert!(used(name), "{kind} has {name}, the example does not");
        }
    }
}

/// One edit of a text at a place given in thousandths of it.
fn edited(text: &str, edits: &[(u16, u8, String)]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for (place, kind, piece) in edits {
        let at = chars.len() * usize::from(*place % 1000) / 1000;
        let end = (at + 1 + usize::from(*place) % 17).min(chars.len());
        match kind % 4 {
            0 => drop(chars.splice(at..at, piece.chars())),
            1 => drop(chars.splice(at..end, std::iter::empty())),
            2 => drop(chars.splice(at..end, piece.chars())),
            _ => {
                let copy: Vec<char> = chars[at..end].to_vec();
                drop(chars.splice(at..at, copy));
            }
        }
    }
    chars.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_workflows_are_plans_or_problems_with_places(
        edits in prop::collection::vec((any::<u16>(), any::<u8>(), "[ -~\n]{0,6}|&a|\\*a|!!int|<<: \\*a|- |\u{0}|é|99999999999"), 1..6),
    ) {
        let text = edited(EVERYTHING, &edits);
        match plan(&text) {
            Ok(plan) => prop_assert!(!plan.payloads.is_empty()),
            Err(told) => {
                for line in told.lines() {
                    let mut parts = line.splitn(4, ':').skip(1);
                    prop_assert!(parts.next().and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n > 0), "{}", line);
                    prop_assert!(parts.next().and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n > 0), "{}", line);
                    prop_assert!(parts.next().is_some_and(|text| text.contains(';')), "{}", line);
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_a_plan_or_problems(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzz_workflow(&bytes);
    }
}
