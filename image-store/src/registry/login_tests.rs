use super::*;

fn repository(name: &str) -> Repository {
    crate::repository::parse(name).unwrap().repository
}

fn look(texts: &[&str], name: &str) -> Result<Option<Login>, RegistryError> {
    let dir = tempfile::tempdir().unwrap();
    let files = texts.iter().enumerate().map(|(number, text)| {
        let path = dir.path().join(number.to_string());
        std::fs::write(&path, text).unwrap();
        path
    });
    let files: Vec<PathBuf> = files.collect();
    find(&files, false, &repository(name))
}

fn user_of(texts: &[&str], name: &str) -> Option<String> {
    look(texts, name).unwrap().map(|login| match login {
        Login::Password { user, .. } => user,
        Login::Identity(token) => format!("identity {token}"),
        Login::Bearer(token) => format!("bearer {token}"),
    })
}

/// `{"auths": {KEY: {"auth": base64(USER:secret)}}}` with users that need no escapes.
fn auths(entries: &[(&str, &str)]) -> String {
    let encoded =
        |user: &str| http_auth::basic::encode_credentials(user, "se:cret").split_off("Basic ".len());
    let entry = |(key, user): &(&str, &str)| format!("{key:?}: {{\"auth\": {:?}}}", encoded(user));
    format!("{{\"auths\": {{{}}}}}", entries.iter().map(entry).collect::<Vec<_>>().join(","))
}

#[test]
fn the_most_specific_key_wins_and_then_the_first_file() {
    let one = auths(&[("h.x", "host"), ("h.x/team", "team"), ("h.x/team/image", "image"), ("h.x:5", "port")]);
    let two = auths(&[("h.x/team/deep/image", "second"), ("y.x", "only second")]);
    let files = [one.as_str(), two.as_str()];
    for (name, user) in [
        ("h.x/team/image", Some("image")),
        ("h.x/team/other", Some("team")),
        ("h.x/team/deep/image", Some("team")),
        ("h.x/teams/image", Some("host")),
        ("h.x:5/team/image", Some("port")),
        ("y.x/a", Some("only second")),
        ("z.x/a", None),
    ] {
        assert_eq!(user_of(&files, name).as_deref(), user, "{name}");
    }
}

#[test]
fn each_spelling_of_a_registry_is_found() {
    for key in ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "https://docker.io"] {
        assert_eq!(user_of(&[&auths(&[(key, "u")])], "debian").as_deref(), Some("u"), "{key}");
    }
    for key in ["https://h.x", "h.x/", "http://h.x/v2/", "https://h.x/v1/"] {
        assert_eq!(user_of(&[&auths(&[(key, "u")])], "h.x/a/b").as_deref(), Some("u"), "{key}");
    }
    assert_eq!(user_of(&[&auths(&[("https://h.x.evil", "u")])], "h.x/a"), None);
}

#[test]
fn every_kind_of_entry_is_read() {
    let of = |entry: &str| user_of(&[&format!("{{\"auths\": {{\"h.x\": {entry}}}}}")], "h.x/a");
    assert_eq!(of(r#"{"username": "u", "password": "p"}"#).as_deref(), Some("u"));
    assert_eq!(of(r#"{"identitytoken": "t", "auth": "dTpw"}"#).as_deref(), Some("identity t"));
    assert_eq!(of(r#"{"registrytoken": "t"}"#).as_deref(), Some("bearer t"));
    assert_eq!(of("{}"), None);
    let login = look(&[&auths(&[("h.x", "u")])], "h.x/a").unwrap();
    assert_eq!(login, Some(Login::Password { user: "u".into(), secret: "se:cret".into() }));
}

#[test]
fn a_bad_file_is_named_and_its_secret_is_not() {
    for text in [
        "{",
        "[\"hunter2\"]",
        r#"{"auths": {"h.x": {"auth": "hunter2!"}}}"#,
        r#"{"auths": {"h.x": "hunter2"}}"#,
    ] {
        let error = look(&[text], "h.x/a").unwrap_err().to_string();
        assert!(error.contains("auth file") && !error.contains("hunter2"), "{error}");
    }
    let error = find(&[PathBuf::from("/nowhere/auth.json")], true, &repository("h.x/a")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/auth.json"), "{error}");
    assert!(find(&[PathBuf::from("/nowhere/auth.json")], false, &repository("h.x/a")).unwrap().is_none());
}

#[test]
fn a_helper_that_is_not_there_or_has_no_name_is_an_error() {
    for (helper, says) in
        [("no-such-helper-here", "can't be started"), ("../x", "no name of a credential helper")]
    {
        let text = format!("{{\"credHelpers\": {{\"h.x\": {helper:?}}}}}");
        let error = look(&[&text], "h.x/a").unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(look(&[&text], "other.x/a").unwrap().is_none());
    }
}

#[test]
fn base64_is_read_with_and_without_padding() {
    for (text, bytes) in
        [("", ""), ("YQ==", "a"), ("YQ", "a"), ("YWI=", "ab"), ("YWJj", "abc"), ("YWJjZA", "abcd")]
    {
        assert_eq!(base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
    }
    for text in ["Y", "Y Q=", "Y-Q=", "YWJjZ"] {
        assert_eq!(base64(text), None, "{text}");
    }
}
