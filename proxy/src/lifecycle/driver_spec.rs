//! What the driver is asked for: the sandbox of the API in the words of the driver contract.

use postern_driver_core::compute as driver;
use postern_proto::v1::{Sandbox, SandboxSpec, SandboxTemplate};
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use crate::call_error::CallError;

/// The request for `sandbox`, without its token.
///
/// # Errors
/// `INVALID_ARGUMENT` when the driver's own configuration or the resources have the wrong shape.
pub(super) fn driver_sandbox(
    sandbox: &Sandbox,
    capabilities: &driver::GetCapabilitiesResponse,
) -> Result<driver::DriverSandbox, CallError> {
    let metadata = sandbox.metadata.clone().unwrap_or_default();
    let spec = sandbox.spec.clone().unwrap_or_default();
    let template = template(spec.template.clone().unwrap_or_default(), capabilities)?;
    Ok(driver::DriverSandbox {
        id: metadata.id,
        name: metadata.name,
        namespace: String::new(),
        workspace: metadata.workspace,
        spec: Some(driver_spec(spec, template)),
        status: None,
    })
}

fn driver_spec(
    spec: SandboxSpec,
    template: driver::DriverSandboxTemplate,
) -> driver::DriverSandboxSpec {
    driver::DriverSandboxSpec {
        log_level: spec.log_level,
        environment: spec.environment,
        template: Some(template),
        resource_requirements: spec.resource_requirements.map(|wanted| {
            driver::ResourceRequirements {
                gpu: wanted.gpu.map(|gpu| driver::GpuResourceRequirements { count: gpu.count }),
            }
        }),
        sandbox_token: String::new(),
        command: spec.command,
        tty: spec.tty,
    }
}

fn template(
    template: SandboxTemplate,
    capabilities: &driver::GetCapabilitiesResponse,
) -> Result<driver::DriverSandboxTemplate, CallError> {
    let resources = template.resources.as_ref().map(resources).transpose()?;
    let platform_config = platform_config(&template);
    let driver_config = own_config(template.driver_config, &capabilities.driver_name)?;
    let image =
        if template.image.is_empty() { capabilities.default_image.clone() } else { template.image };
    Ok(driver::DriverSandboxTemplate {
        image,
        agent_socket_path: template.agent_socket,
        labels: template.labels,
        environment: template.environment,
        resources,
        platform_config,
        driver_config,
    })
}

/// The table of this driver out of `{driver name: {...}}`.
fn own_config(all: Option<Struct>, name: &str) -> Result<Option<Struct>, CallError> {
    let Some(value) = all.and_then(|mut all| all.fields.remove(name)) else {
        return Ok(None);
    };
    match value.kind {
        Some(Kind::StructValue(table)) => Ok(Some(table)),
        _ => Err(CallError::invalid(
            "spec.template.driver_config",
            format!("the entry {name:?} must be an object"),
        )),
    }
}

/// `{"requests": {"cpu", "memory"}, "limits": {"cpu", "memory"}}`, as Kubernetes writes it.
fn resources(raw: &Struct) -> Result<driver::DriverResourceRequirements, CallError> {
    Ok(driver::DriverResourceRequirements {
        cpu_request: quantity(raw, "requests", "cpu")?,
        cpu_limit: quantity(raw, "limits", "cpu")?,
        memory_request: quantity(raw, "requests", "memory")?,
        memory_limit: quantity(raw, "limits", "memory")?,
    })
}

fn quantity(raw: &Struct, group: &str, name: &str) -> Result<String, CallError> {
    let wrong = |what: &str| {
        CallError::invalid(
            "spec.template.resources",
            format!("{what}; write {{\"{group}\": {{\"{name}\": \"1\"}}}}"),
        )
    };
    let Some(group_value) = raw.fields.get(group) else {
        return Ok(String::new());
    };
    let Some(Kind::StructValue(table)) = &group_value.kind else {
        return Err(wrong(&format!("{group:?} must be an object")));
    };
    match table.fields.get(name).and_then(|value| value.kind.as_ref()) {
        None | Some(Kind::NullValue(_)) => Ok(String::new()),
        Some(Kind::StringValue(text)) => Ok(text.clone()),
        Some(Kind::NumberValue(number)) if number.is_finite() => Ok(number.to_string()),
        Some(_) => Err(wrong(&format!("{group}.{name} must be a string or a number"))),
    }
}

/// What drivers of platforms want beyond the common fields (OpenShell contract): `runtime_class_name`, `annotations`,
/// `host_users`, `resources_raw`.
fn platform_config(template: &SandboxTemplate) -> Option<Struct> {
    let mut config = Struct::default();
    let mut set = |name: &str, kind: Kind| {
        config.fields.insert(name.to_owned(), Value { kind: Some(kind) });
    };
    if !template.runtime_class_name.is_empty() {
        set("runtime_class_name", Kind::StringValue(template.runtime_class_name.clone()));
    }
    if !template.annotations.is_empty() {
        let text = |value: &String| Value { kind: Some(Kind::StringValue(value.clone())) };
        let fields =
            template.annotations.iter().map(|(key, value)| (key.clone(), text(value))).collect();
        set("annotations", Kind::StructValue(Struct { fields }));
    }
    if let Some(own_namespace) = template.user_namespaces {
        set("host_users", Kind::BoolValue(!own_namespace));
    }
    if let Some(raw) = &template.resources {
        set("resources_raw", Kind::StructValue(raw.clone()));
    }
    (!config.fields.is_empty()).then_some(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Value {
        Value { kind: Some(Kind::StringValue(value.into())) }
    }

    fn object(fields: &[(&str, Value)]) -> Struct {
        Struct {
            fields: fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
        }
    }

    fn nested(value: Struct) -> Value {
        Value { kind: Some(Kind::StructValue(value)) }
    }

    fn with_template(template: SandboxTemplate) -> Sandbox {
        Sandbox {
            spec: Some(SandboxSpec { template: Some(template), ..Default::default() }),
            ..Default::default()
        }
    }

    fn capabilities() -> driver::GetCapabilitiesResponse {
        driver::GetCapabilitiesResponse {
            driver_name: "fake".into(),
            default_image: "base".into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_driver_gets_its_own_table_and_the_default_image() {
        let template = SandboxTemplate {
            driver_config: Some(object(&[
                ("fake", nested(object(&[("a", text("1"))]))),
                ("other", text("x")),
            ])),
            resources: Some(object(&[("limits", nested(object(&[("cpu", text("2"))])))])),
            user_namespaces: Some(true),
            ..Default::default()
        };
        let asked = driver_sandbox(&with_template(template), &capabilities()).unwrap();
        let template = asked.spec.unwrap().template.unwrap();
        assert_eq!(template.image, "base");
        assert_eq!(template.driver_config, Some(object(&[("a", text("1"))])));
        assert_eq!(template.resources.unwrap().cpu_limit, "2");
        let platform = template.platform_config.unwrap();
        assert_eq!(platform.fields["host_users"].kind, Some(Kind::BoolValue(false)));
        assert!(platform.fields.contains_key("resources_raw"));
    }

    #[test]
    fn wrong_shapes_name_the_field() {
        let table = SandboxTemplate {
            driver_config: Some(object(&[("fake", text("x"))])),
            ..Default::default()
        };
        let error = driver_sandbox(&with_template(table), &capabilities()).unwrap_err();
        assert!(error.to_string().contains("spec.template.driver_config"));
        let cpu = SandboxTemplate {
            resources: Some(object(&[("limits", text("2"))])),
            ..Default::default()
        };
        let error = driver_sandbox(&with_template(cpu), &capabilities()).unwrap_err();
        assert!(error.to_string().contains("spec.template.resources"));
    }
}
