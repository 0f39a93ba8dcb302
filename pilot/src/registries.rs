//! How this pilot reaches registries: the registries file, and where logins are.
//!
//! **Must not know:** what is fetched.

use std::path::PathBuf;

use image_store::{Logins, Registries, RegistryAccess, usual_auth_files};

use crate::config::{ConfigError, Surroundings};

/// How registries are reached, from the two settings and the surroundings.
///
/// # Errors
/// When a registries file that is named can't be read, or one is wrong. Auth files are read when they are needed.
pub fn registry_access(
    registries: Option<PathBuf>,
    auth: Option<PathBuf>,
    around: &Surroundings,
) -> Result<RegistryAccess, ConfigError> {
    let config_home =
        || around.config_home.clone().or_else(|| around.home.as_ref().map(|home| home.join(".config")));
    let default = config_home().map(|folder| folder.join("latebind/registries.yaml"));
    let named = registries.is_some();
    let file = match registries.or(default) {
        Some(path) => read(path, named)?,
        None => Registries::default(),
    };
    let docker = || around.home.as_ref().map(|home| home.join(".docker"));
    let logins = match auth.or_else(|| around.registry_auth_file.clone()) {
        Some(file) => Logins::File(std::path::absolute(&file).unwrap_or(file)),
        None => usual_auth_files(
            around.runtime_dir.clone(),
            config_home(),
            around.docker_config.clone().or_else(docker),
        ),
    };
    Ok(RegistryAccess::new(file, logins))
}

fn read(path: PathBuf, named: bool) -> Result<Registries, ConfigError> {
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => {
            return Ok(Registries::default());
        }
        Err(source) => return Err(ConfigError::Read { path, source }),
    };
    if text.trim().is_empty() {
        return Ok(Registries::default());
    }
    serde_saphyr::from_str(&text).map_err(|error| {
        let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
        ConfigError::Parse { path, reason }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(dir: &tempfile::TempDir) -> Surroundings {
        Surroundings { home: Some(dir.path().to_path_buf()), ..Surroundings::default() }
    }

    #[test]
    fn the_registries_file_is_read_and_complained_about_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("registries.yaml");
        let text = "registries:\n  docker.io: {mirrors: [localhost:5000/hub]}\n  lab.local:5000: {insecure: true, ca: /x.pem}\n";
        std::fs::write(&file, text).unwrap();
        let access = registry_access(Some(file.clone()), None, &around(&dir)).unwrap();
        let rules = &access.registries.registries;
        assert_eq!(rules["docker.io"].mirrors, ["localhost:5000/hub"]);
        assert!(rules["lab.local:5000"].insecure);
        std::fs::write(&file, "registries:\n  docker.io: {mirror: [x]}\n").unwrap();
        let error = registry_access(Some(file), None, &around(&dir)).unwrap_err().to_string();
        assert!(error.contains("registries.yaml") && !error.contains('\n'), "{error}");
        assert!(registry_access(Some(dir.path().join("none")), None, &around(&dir)).is_err());
        assert_eq!(registry_access(None, None, &around(&dir)).unwrap().registries, Registries::default());
    }

    #[test]
    fn a_named_auth_file_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let named = |auth: Option<&str>, around: &Surroundings| {
            registry_access(None, auth.map(PathBuf::from), around).unwrap().logins
        };
        let mut around = around(&dir);
        assert!(matches!(named(None, &around), Logins::Usual(files) if files.len() == 2));
        around.registry_auth_file = Some(PathBuf::from("/env.json"));
        assert_eq!(named(None, &around), Logins::File(PathBuf::from("/env.json")));
        assert_eq!(named(Some("/flag.json"), &around), Logins::File(PathBuf::from("/flag.json")));
    }
}
