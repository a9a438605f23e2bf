//! What a pod refers to: Secrets, ConfigMaps, tokens of its ServiceAccount, and its own fields.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, EnvVar, KeyToPath, ObjectFieldSelector, Pod, Secret, ServiceAccount,
    Volume, VolumeProjection,
};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};

use crate::config::Config;
use crate::plan::{ContainerPlan, expand};

/// Files of a volume by their path in it.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Where to ask for one pod.
pub(crate) struct Source<'a> {
    pub(crate) client: &'a Client,
    pub(crate) pod: &'a Pod,
    pub(crate) config: &'a Config,
}

impl Source<'_> {
    fn namespace(&self) -> String {
        self.pod.namespace().unwrap_or_default()
    }

    async fn secret(&self, name: &str, optional: bool) -> Result<Option<Files>> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace());
        let found = api
            .get_opt(name)
            .await
            .with_context(|| format!("Secret {name}"))?;
        if found.is_none() && !optional {
            bail!("Secret {name} is missing");
        }
        Ok(found.map(|secret| {
            let data = secret.data.unwrap_or_default().into_iter();
            data.map(|(key, value)| (key, value.0)).collect()
        }))
    }

    async fn config_map(&self, name: &str, optional: bool) -> Result<Option<Files>> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace());
        let found = api
            .get_opt(name)
            .await
            .with_context(|| format!("ConfigMap {name}"))?;
        if found.is_none() && !optional {
            bail!("ConfigMap {name} is missing");
        }
        Ok(found.map(|map| {
            let text = map.data.unwrap_or_default().into_iter();
            let bytes = map.binary_data.unwrap_or_default().into_iter();
            text.map(|(key, value)| (key, value.into_bytes()))
                .chain(bytes.map(|(key, value)| (key, value.0)))
                .collect()
        }))
    }

    /// The files of a volume that is made of objects; none for one that is a folder.
    pub(crate) async fn files(&self, volume: &Volume) -> Result<Option<Files>> {
        let named = || format!("volume {}", volume.name);
        if let Some(secret) = &volume.secret {
            let name = secret.secret_name.as_deref().unwrap_or_default();
            let optional = secret.optional == Some(true);
            let data = self.secret(name, optional).await.with_context(named)?;
            return Ok(Some(
                chosen(data, secret.items.as_deref(), optional).with_context(named)?,
            ));
        }
        if let Some(map) = &volume.config_map {
            let optional = map.optional == Some(true);
            let data = self.config_map(&map.name, optional).await.with_context(named)?;
            return Ok(Some(
                chosen(data, map.items.as_deref(), optional).with_context(named)?,
            ));
        }
        if let Some(downward) = &volume.downward_api {
            return Ok(Some(
                self.downward(downward.items.as_deref()).with_context(named)?,
            ));
        }
        let Some(projected) = &volume.projected else {
            return Ok(None);
        };
        let mut files = Files::new();
        for source in projected.sources.iter().flatten() {
            files.extend(self.projection(source).await.with_context(named)?);
        }
        Ok(Some(files))
    }

    async fn projection(&self, source: &VolumeProjection) -> Result<Files> {
        let mut files = Files::new();
        if let Some(secret) = &source.secret {
            let optional = secret.optional == Some(true);
            let data = self.secret(&secret.name, optional).await?;
            files.extend(chosen(data, secret.items.as_deref(), optional)?);
        }
        if let Some(map) = &source.config_map {
            let optional = map.optional == Some(true);
            let data = self.config_map(&map.name, optional).await?;
            files.extend(chosen(data, map.items.as_deref(), optional)?);
        }
        if let Some(downward) = &source.downward_api {
            files.extend(self.downward(downward.items.as_deref())?);
        }
        if let Some(token) = &source.service_account_token {
            let text = self
                .token(token.audience.as_deref(), token.expiration_seconds)
                .await?;
            files.insert(token.path.clone(), text.into_bytes());
        }
        Ok(files)
    }

    fn downward(&self, items: Option<&[DownwardAPIVolumeFile]>) -> Result<Files> {
        let items = items.unwrap_or_default().iter();
        items
            .map(|item| {
                let field = item.field_ref.as_ref().with_context(|| {
                    format!(
                        "{}: resourceFieldRef: a native process has no such field",
                        item.path
                    )
                })?;
                Ok((item.path.clone(), self.field(field)?.into_bytes()))
            })
            .collect()
    }

    /// A token of the pod's ServiceAccount, bound to the pod: it dies with it.
    async fn token(&self, audience: Option<&str>, seconds: Option<i64>) -> Result<String> {
        let spec = self.pod.spec.as_ref();
        let account = spec.and_then(|spec| spec.service_account_name.as_deref());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: audience.map(|audience| vec![audience.to_owned()]),
                expiration_seconds: seconds,
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(self.pod.name_any()),
                    uid: self.pod.uid(),
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace());
        let account = account.unwrap_or("default");
        let granted = api
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("a token of ServiceAccount {account}"))?;
        let token = granted.status.and_then(|status| status.token);
        token.context("a token without a token")
    }

    /// A field of the pod, as the downward API has it.
    fn field(&self, selector: &ObjectFieldSelector) -> Result<String> {
        field(self.pod, &selector.field_path, self.config)
    }

    /// The environment of a container: its variables may refer to earlier ones.
    ///
    /// # Errors
    /// Names what is missing.
    pub(crate) async fn env(&self, plan: &ContainerPlan) -> Result<BTreeMap<String, String>> {
        let mut env = BTreeMap::new();
        for variable in &plan.env {
            let named = || format!("env {}", variable.name);
            if let Some(value) = self.variable(variable).await.with_context(named)? {
                let value = expand(&value, &|name| env.get(name).cloned());
                env.insert(variable.name.clone(), value);
            }
        }
        Ok(env)
    }

    async fn variable(&self, variable: &EnvVar) -> Result<Option<String>> {
        let Some(source) = &variable.value_from else {
            return Ok(Some(variable.value.clone().unwrap_or_default()));
        };
        let one = |data: Option<Files>, key: &str, optional: bool| {
            let value = data.and_then(|mut data| data.remove(key));
            match value {
                Some(value) => Ok(Some(
                    String::from_utf8(value).with_context(|| format!("{key} is no text"))?,
                )),
                None if optional => Ok(None),
                None => bail!("key {key} is missing"),
            }
        };
        if let Some(selector) = &source.field_ref {
            return self.field(selector).map(Some);
        }
        if let Some(secret) = &source.secret_key_ref {
            let optional = secret.optional == Some(true);
            return one(self.secret(&secret.name, optional).await?, &secret.key, optional);
        }
        if let Some(map) = &source.config_map_key_ref {
            let optional = map.optional == Some(true);
            return one(self.config_map(&map.name, optional).await?, &map.key, optional);
        }
        bail!("valueFrom: expected fieldRef, secretKeyRef or configMapKeyRef")
    }
}

/// The chosen keys under their chosen paths; all of them where none are chosen.
fn chosen(data: Option<Files>, items: Option<&[KeyToPath]>, optional: bool) -> Result<Files> {
    let mut data = data.unwrap_or_default();
    let Some(items) = items else {
        return Ok(data);
    };
    let mut files = Files::new();
    for item in items {
        match data.remove(&item.key) {
            Some(value) => {
                files.insert(item.path.clone(), value);
            }
            None if optional => {}
            None => bail!("key {} is missing", item.key),
        }
    }
    Ok(files)
}

fn field(pod: &Pod, path: &str, config: &Config) -> Result<String> {
    let entry = |map: &BTreeMap<String, String>, path: &str| {
        let key = path
            .split_once("['")
            .and_then(|(_, rest)| rest.strip_suffix("']"));
        key.and_then(|key| map.get(key).cloned()).unwrap_or_default()
    };
    let spec = pod.spec.as_ref();
    Ok(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => pod.uid().unwrap_or_default(),
        "spec.nodeName" => config.node.clone(),
        "spec.serviceAccountName" => spec
            .and_then(|spec| spec.service_account_name.clone())
            .unwrap_or_default(),
        "status.podIP" | "status.podIPs" | "status.hostIP" | "status.hostIPs" => config.address.to_string(),
        "metadata.labels" => listed(pod.labels()),
        "metadata.annotations" => listed(pod.annotations()),
        label if label.starts_with("metadata.labels[") => entry(pod.labels(), label),
        annotation if annotation.starts_with("metadata.annotations[") => entry(pod.annotations(), annotation),
        other => bail!("fieldRef {other}: no such field"),
    })
}

/// As the downward API writes a map: a line per entry, the value quoted.
fn listed(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map
        .iter()
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::tests::stage;
    use crate::config::tests::config;

    #[test]
    fn fields_of_the_pod_are_found() {
        let pod: Pod = serde_json::from_value(stage()).expect("a pod");
        for (path, expected) in [
            ("metadata.name", "flash-early-1-0"),
            ("metadata.namespace", "llm"),
            ("metadata.labels['apps.kubernetes.io/pod-index']", "0"),
            ("metadata.labels['missing']", ""),
            ("spec.nodeName", "mac-1"),
            ("status.podIP", "192.168.1.20"),
        ] {
            assert_eq!(field(&pod, path, &config()).expect(path), expected, "{path}");
        }
        assert!(field(&pod, "spec.containers", &config()).is_err());
    }

    #[test]
    fn chosen_keys_take_their_paths_and_a_missing_one_is_named() {
        let data = || {
            Some(Files::from([
                ("a".to_owned(), vec![1]),
                ("b".to_owned(), vec![2]),
            ]))
        };
        let item = |key: &str| KeyToPath {
            key: key.into(),
            path: "x/y".into(),
            ..KeyToPath::default()
        };
        assert_eq!(chosen(data(), None, false).expect("all").len(), 2);
        assert_eq!(
            chosen(data(), Some(&[item("b")]), false).expect("one"),
            Files::from([("x/y".to_owned(), vec![2])])
        );
        let error = chosen(data(), Some(&[item("c")]), false)
            .expect_err("missing")
            .to_string();
        assert!(error.contains("key c is missing"), "{error}");
        assert!(
            chosen(data(), Some(&[item("c")]), true)
                .expect("optional")
                .is_empty()
        );
    }
}
