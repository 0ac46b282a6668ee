use std::collections::{HashMap, HashSet};

use postern_proto::datamodel::AllWorkspaces;
use postern_proto::v1::SandboxPhase;

use super::*;
use crate::auth::{ADMIN_ROLE, User};
use crate::lifecycle::testing::{Rig, supervisor, user};

fn scope(workspace: &str) -> Option<WorkspaceSelector> {
    Some(WorkspaceSelector { selection: Some(Selection::Workspace(workspace.into())) })
}

fn everywhere() -> Option<WorkspaceSelector> {
    Some(WorkspaceSelector { selection: Some(Selection::AllWorkspaces(AllWorkspaces {})) })
}

fn asked(name: &str) -> CreateSandboxRequest {
    CreateSandboxRequest {
        name: name.into(),
        workspace_scope: scope("default"),
        ..Default::default()
    }
}

fn name_of(response: &SandboxResponse) -> String {
    response.sandbox.as_ref().unwrap().metadata.as_ref().unwrap().name.clone()
}

fn id_of(response: &SandboxResponse) -> String {
    response.sandbox.as_ref().unwrap().metadata.as_ref().unwrap().id.clone()
}

fn phase_of(response: &SandboxResponse) -> SandboxPhase {
    response.sandbox.as_ref().unwrap().status.as_ref().unwrap().phase()
}

#[tokio::test]
async fn create_answers_with_the_sandbox_as_it_was_completed() {
    let rig = Rig::new().await;
    let request = CreateSandboxRequest {
        labels: HashMap::from([("team".into(), "a".into())]),
        annotations: HashMap::from([("note".into(), "hello world".into())]),
        ..asked("web")
    };
    let response = create(&rig.lifecycle, &user(), request).await.unwrap();
    let sandbox = response.sandbox.clone().unwrap();
    let metadata = sandbox.metadata.unwrap();
    assert_eq!((metadata.name.as_str(), metadata.workspace.as_str()), ("web", "default"));
    assert_eq!(metadata.labels["team"], "a");
    assert_eq!(metadata.annotations["note"], "hello world");
    assert!(metadata.created_time.is_some() && metadata.resource_version > 0);
    let spec = sandbox.spec.unwrap();
    assert_eq!((spec.command.join(" ").as_str(), spec.tty), ("/bin/bash -l", true));
    assert!(response.service_urls.is_empty());
    // What was answered is what is found, by either key.
    let found = GetSandboxRequest { name: metadata.id, ..Default::default() };
    let found = get(&rig.lifecycle, &user(), found).await.unwrap();
    assert_eq!(found, response);
    assert_eq!(phase_of(&found), SandboxPhase::Provisioning);
}

#[tokio::test]
async fn a_request_id_covers_the_contents_whatever_order_maps_have() {
    let rig = Rig::new().await;
    let request = |labels: &[(&str, &str)]| CreateSandboxRequest {
        request_id: "r-1".into(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..asked("")
    };
    let one = create(&rig.lifecycle, &user(), request(&[("a", "1"), ("b", "2")])).await.unwrap();
    let two = create(&rig.lifecycle, &user(), request(&[("b", "2"), ("a", "1")])).await.unwrap();
    assert_eq!(id_of(&one), id_of(&two));
    let other = create(&rig.lifecycle, &user(), request(&[("a", "2")])).await.unwrap_err();
    assert_eq!(other.code(), tonic::Code::Aborted);
    // Another caller's ids are its own.
    let mut bob = User::local_dev();
    bob.subject = "bob".into();
    let bobs = create(&rig.lifecycle, &Principal::User(bob), request(&[("a", "2")])).await.unwrap();
    assert_ne!(id_of(&one), id_of(&bobs));
}

#[tokio::test]
async fn pages_visit_each_sandbox_once() {
    let rig = Rig::new().await;
    let mut wanted = HashSet::new();
    for n in 0..7 {
        let mut request = asked(&format!("s{n}"));
        request.labels = HashMap::from([("odd".into(), (n % 2).to_string())]);
        wanted.insert(name_of(&create(&rig.lifecycle, &user(), request).await.unwrap()));
    }
    let page = |token: String, selector: &str| ListSandboxesRequest {
        workspace_scope: scope("default"),
        page_size: 3,
        page_token: token,
        label_selector: selector.into(),
    };
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let answer = list(&rig.lifecycle, &user(), page(token, "")).await.unwrap();
        assert!(answer.sandboxes.len() <= 3);
        seen.extend(answer.sandboxes.into_iter().map(|sandbox| sandbox.metadata.unwrap().name));
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen.len(), 7);
    assert_eq!(seen.into_iter().collect::<HashSet<_>>(), wanted);

    let odd = list(&rig.lifecycle, &user(), page(String::new(), "odd=1")).await.unwrap();
    assert_eq!(odd.sandboxes.len(), 3);
    let bad_selector =
        list(&rig.lifecycle, &user(), page(String::new(), "odd in 1")).await.unwrap_err();
    assert!(bad_selector.to_string().starts_with("label_selector"), "{bad_selector}");
    let bad_token = list(&rig.lifecycle, &user(), page("x".into(), "")).await.unwrap_err();
    assert!(bad_token.to_string().starts_with("page_token"), "{bad_token}");
    let foreign =
        list(&rig.lifecycle, &user(), page(String::new(), "")).await.unwrap().next_page_token;
    let error = list(&rig.lifecycle, &user(), page(foreign, "odd=1")).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn workspaces() {
    let rig = Rig::new().await;
    create(&rig.lifecycle, &user(), asked("web")).await.unwrap();
    let all = || ListSandboxesRequest { workspace_scope: everywhere(), ..Default::default() };
    assert_eq!(list(&rig.lifecycle, &user(), all()).await.unwrap().sandboxes.len(), 1);
    let mut plain = User::local_dev();
    plain.roles.retain(|role| role != ADMIN_ROLE);
    let denied = list(&rig.lifecycle, &Principal::User(plain), all()).await.unwrap_err();
    assert_eq!(denied.code(), tonic::Code::PermissionDenied);
    let elsewhere = CreateSandboxRequest { workspace_scope: scope("other"), ..asked("web") };
    let missing = create(&rig.lifecycle, &user(), elsewhere).await.unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound);
    let spanning = GetSandboxRequest { workspace_scope: everywhere(), name: "web".into() };
    assert_eq!(
        get(&rig.lifecycle, &user(), spanning).await.unwrap_err().code(),
        tonic::Code::InvalidArgument
    );
}

#[tokio::test]
async fn deletions_say_what_came_of_them() {
    let rig = Rig::new().await;
    let made = create(&rig.lifecycle, &user(), asked("web")).await.unwrap();
    let request = |request_id: &str, allow_missing| DeleteSandboxRequest {
        name: "web".into(),
        request_id: request_id.into(),
        allow_missing,
        workspace_scope: None,
    };
    let gone = delete(&rig.lifecycle, &user(), request("d-1", false)).await.unwrap();
    assert_eq!((gone.outcome(), gone.sandbox_id), (DeletionOutcome::Completed, id_of(&made)));
    // The repetition is about the same sandbox, before and after the name is used again.
    let again = delete(&rig.lifecycle, &user(), request("d-1", false)).await.unwrap();
    assert_eq!((again.outcome(), again.sandbox_id), (DeletionOutcome::Completed, id_of(&made)));
    let absent = delete(&rig.lifecycle, &user(), request("", true)).await.unwrap();
    assert_eq!(
        (absent.outcome(), absent.sandbox_id.as_str()),
        (DeletionOutcome::AlreadyAbsent, "")
    );
    let missing = delete(&rig.lifecycle, &user(), request("", false)).await.unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound);

    let second = create(&rig.lifecycle, &user(), asked("web")).await.unwrap();
    let late = delete(&rig.lifecycle, &user(), request("d-1", false)).await.unwrap();
    assert_eq!(late.sandbox_id, id_of(&made));
    let request = GetSandboxRequest { name: "web".into(), ..Default::default() };
    let found = get(&rig.lifecycle, &user(), request).await.unwrap();
    assert_eq!(id_of(&found), id_of(&second));
}

#[tokio::test]
async fn a_late_repetition_of_a_stop_does_not_stop_again() {
    let rig = Rig::new().await;
    create(&rig.lifecycle, &user(), asked("web")).await.unwrap();
    let stop_it = || StopSandboxRequest {
        name: "web".into(),
        request_id: "s-1".into(),
        workspace_scope: None,
    };
    let stopped = stop(&rig.lifecycle, &user(), stop_it()).await.unwrap();
    assert_eq!(phase_of(&stopped), SandboxPhase::Stopped);
    let start_it = StartSandboxRequest {
        name: "web".into(),
        request_id: String::new(),
        workspace_scope: None,
    };
    let started = start(&rig.lifecycle, &user(), start_it).await.unwrap();
    assert_eq!(phase_of(&started), SandboxPhase::Starting);
    let repeated = stop(&rig.lifecycle, &user(), stop_it()).await.unwrap();
    assert_eq!(phase_of(&repeated), SandboxPhase::Starting);
}

#[tokio::test]
async fn sandboxes_may_not_make_or_see_sandboxes() {
    let rig = Rig::new().await;
    let made = create(&rig.lifecycle, &user(), asked("web")).await.unwrap();
    let caller = supervisor(&id_of(&made));
    let denied = [
        create(&rig.lifecycle, &caller, asked("x")).await.unwrap_err(),
        get(
            &rig.lifecycle,
            &caller,
            GetSandboxRequest { name: "web".into(), ..Default::default() },
        )
        .await
        .unwrap_err(),
        list(&rig.lifecycle, &caller, ListSandboxesRequest::default()).await.map(drop).unwrap_err(),
        delete(
            &rig.lifecycle,
            &caller,
            DeleteSandboxRequest { name: "web".into(), ..Default::default() },
        )
        .await
        .map(drop)
        .unwrap_err(),
    ];
    assert!(denied.iter().all(|error| error.code() == tonic::Code::PermissionDenied));
}

#[tokio::test]
async fn a_wish_that_cannot_be_met_is_told_in_the_log() {
    let rig = Rig::new().await;
    let request = CreateSandboxRequest { await_main_process_attachment: true, ..asked("web") };
    let made = create(&rig.lifecycle, &user(), request).await.unwrap();
    let request =
        postern_proto::v1::GetSandboxLogsRequest { sandbox: id_of(&made), ..Default::default() };
    let logs = crate::handlers::logs::get(&rig.lifecycle, &user(), request).await.unwrap().logs;
    assert!(
        logs.iter()
            .any(|line| line.level == "WARN"
                && line.message.contains("await_main_process_attachment"))
    );
}
