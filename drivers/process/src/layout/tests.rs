use std::os::unix::fs::symlink;

use super::*;

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

fn open(root: &Path) -> StateDir {
    StateDir::open(root, None).unwrap()
}

#[test]
fn everything_is_closed_to_others() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("deep/state");
    let state = open(&root);
    let made = state.make("a", None).unwrap();
    write_private(&made.token(), b"secret").unwrap();
    state.publish(&made, "a").unwrap();
    let dir = state.sandbox("a").unwrap();
    for path in [&root, dir.path(), &dir.home(), &dir.tmp(), &dir.run()] {
        assert_eq!(mode(path), 0o700, "{}", path.display());
    }
    for path in [dir.token(), dir.lock()] {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    assert_eq!(state.ids().unwrap(), ["a"]);
    dir.check().unwrap();
}

#[test]
fn a_wide_state_directory_is_closed_and_a_symlinked_one_refused() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("state");
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, Permissions::from_mode(0o777)).unwrap();
    open(&root);
    assert_eq!(mode(&root), 0o700);

    let link = temp.path().join("link");
    symlink(&root, &link).unwrap();
    assert!(matches!(StateDir::open(&link, None), Err(OpenError::Unsafe { .. })));
    let file = temp.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(StateDir::open(&file, None).is_err());
}

#[test]
fn a_symlink_is_no_sandbox_and_is_never_followed() {
    let temp = tempfile::tempdir().unwrap();
    let outside = temp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    let root = temp.path().join("state");
    let state = open(&root);
    symlink(&outside, root.join("sandboxes/evil")).unwrap();
    assert!(state.ids().unwrap().is_empty());

    let made = state.make("a", None).unwrap();
    state.publish(&made, "a").unwrap();
    let dir = state.sandbox("a").unwrap();
    // Reading, writing and removing.
    symlink(outside.join("precious"), dir.token()).unwrap();
    assert!(read_private(&dir.token()).is_err());
    write_private(&dir.token(), b"new").unwrap();
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"x");
    symlink(&outside, dir.home().join("way-out")).unwrap();
    remove_tree(&state.withdraw(&dir).unwrap()).unwrap();
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"x");

    // A directory that became a symlink stops the next start.
    let made = state.make("b", None).unwrap();
    state.publish(&made, "b").unwrap();
    let dir = state.sandbox("b").unwrap();
    fs::remove_dir(dir.home()).unwrap();
    symlink(&outside, dir.home()).unwrap();
    assert!(dir.check().is_err());
}

#[test]
fn an_id_is_published_once() {
    let temp = tempfile::tempdir().unwrap();
    let state = open(&temp.path().join("state"));
    let made = state.make("a", None).unwrap();
    state.publish(&made, "a").unwrap();
    let made = state.make("a", None).unwrap();
    assert_eq!(state.publish(&made, "a").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
}

#[test]
fn leftovers_are_removed_and_sandboxes_are_not() {
    let temp = tempfile::tempdir().unwrap();
    let state = open(&temp.path().join("state"));
    let made = state.make("a", None).unwrap();
    state.publish(&made, "a").unwrap();
    state.make("half", None).unwrap();
    let made = state.make("b", None).unwrap();
    state.publish(&made, "b").unwrap();
    let remains = state.withdraw(&state.sandbox("b").unwrap()).unwrap();
    state.remove_leftovers().unwrap();
    assert!(!remains.exists());
    let names: Vec<_> = fs::read_dir(temp.path().join("state/sandboxes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["a"]);
}

#[test]
fn a_second_driver_waits_for_the_first() {
    let temp = tempfile::tempdir().unwrap();
    let state = open(&temp.path().join("state"));
    let lock = state.lock().unwrap();
    assert!(lock.is_some());
    assert!(state.lock().unwrap().is_none());
    drop(lock);
    assert!(state.lock().unwrap().is_some());
}

#[test]
fn a_socket_path_that_is_too_long_goes_elsewhere_or_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let long = temp.path().join("x".repeat(80));
    let short = temp.path().join("s");
    let state = StateDir::open(&long, Some(&short)).unwrap();
    let dir = state.sandbox("a").unwrap();
    assert!(dir.socket().starts_with(&short));
    assert!(dir.socket().as_os_str().len() <= SOCKET_PATH_BYTES);
    assert_ne!(dir.socket(), state.sandbox("b").unwrap().socket());

    let state = StateDir::open(&long, Some(&long)).unwrap();
    let error = state.sandbox("a").unwrap_err();
    assert!(error.to_string().contains("107"), "{error}");
}

#[test]
fn directories_without_write_permission_can_be_removed() {
    let temp = tempfile::tempdir().unwrap();
    let tree = temp.path().join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/b/file"), "x").unwrap();
    fs::set_permissions(tree.join("a/b"), Permissions::from_mode(0o500)).unwrap();
    open_dirs(&tree).unwrap();
    assert_eq!(mode(&tree.join("a/b")), 0o700);
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
    remove_tree(&tree).unwrap();
}
