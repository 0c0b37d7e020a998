#![allow(clippy::unwrap_used)]

use super::*;
use crate::rollup::testing::rollup_part;

fn at(url: &str) -> config::Store {
    let mut c = config::Config::defaults().store;
    c.url = url.to_owned();
    c
}

fn id(first: i64) -> PartId {
    PartId { kind: Kind::Rollups, partition: 3, first: NextOffset(first) }
}

fn on_both(test: impl Fn(&PartStore)) {
    let dir = tempfile::tempdir().unwrap();
    test(&PartStore::open(&at(&format!("file:{}/sub/dir", dir.path().display()))).unwrap());
    test(&PartStore::open(&at("memory:///prefix")).unwrap());
}

#[test]
fn the_second_put_changes_nothing() {
    on_both(|s| {
        s.probe().unwrap();
        let (one, two) = (rollup_part(3, 0, 10), rollup_part(3, 0, 20));
        assert_eq!(s.footer(&id(0)).unwrap(), None);
        assert_eq!(s.put(&id(0), one.clone()).unwrap(), Put::Created);
        assert_eq!(s.put(&id(0), two).unwrap(), Put::Exists);
        assert_eq!(s.read(&id(0)).unwrap().unwrap(), one);
        assert_eq!(s.footer(&id(0)).unwrap().unwrap().next, NextOffset(10));
        assert_eq!(s.put(&id(10), rollup_part(3, 10, 20)).unwrap(), Put::Created);
        assert_eq!(s.list(Kind::Rollups, 3).unwrap(), [NextOffset(0), NextOffset(10)]);
        assert_eq!((s.list(Kind::Posts, 3).unwrap().len(), s.list(Kind::Rollups, 1).unwrap().len()), (0, 0));
        assert_eq!(s.partitions().unwrap(), [3]);
    });
}

#[test]
fn temporaries_and_strangers_are_no_parts() {
    let dir = tempfile::tempdir().unwrap();
    let s = PartStore::open(&at(&format!("file://{}", dir.path().display()))).unwrap();
    s.put(&id(5), rollup_part(3, 5, 9)).unwrap();
    let folder = dir.path().join("rollups/partition=3");
    for name in [
        "part-00000000000000000009.parquet#1",
        "part-9.parquet",
        "readme.txt",
        "part-0000000000000000000x.parquet",
    ] {
        std::fs::write(folder.join(name), b"half").unwrap();
    }
    assert_eq!(s.list(Kind::Rollups, 3).unwrap(), [NextOffset(5)]);
    // A killed writer's temporary is in the way of nobody.
    assert_eq!(s.put(&id(9), rollup_part(3, 9, 11)).unwrap(), Put::Created);
    let e = {
        std::fs::write(folder.join("part-00000000000000000011.parquet"), b"not parquet at all").unwrap();
        s.footer(&id(11)).unwrap_err()
    };
    assert!(!e.is_retry() && e.to_string().contains("part-00000000000000000011.parquet"), "{e}");
}

#[test]
fn concurrent_creators_have_one_winner() {
    let dir = tempfile::tempdir().unwrap();
    let s = PartStore::open(&at(&format!("file:{}", dir.path().display()))).unwrap();
    for first in 0..20 {
        let created = std::thread::scope(|t| {
            let puts: Vec<_> = (1..=4)
                .map(|n| {
                    t.spawn({
                        let s = &s;
                        move || s.put(&id(first), rollup_part(3, first, first + n)).unwrap()
                    })
                })
                .collect();
            puts.into_iter().map(|h| h.join().unwrap()).filter(|p| *p == Put::Created).count()
        });
        assert_eq!(created, 1);
    }
}

/// A store that overwrites in spite of the condition, as some S3 look-alikes do, or never answers a put.
#[derive(Debug)]
struct Careless(InMemory, Answers);

#[derive(Debug, PartialEq)]
enum Answers {
    Puts,
    NoPut,
}

impl std::fmt::Display for Careless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("careless")
    }
}

type Result<T> = object_store::Result<T>;

#[async_trait::async_trait]
impl ObjectStore for Careless {
    async fn put_opts(
        &self,
        p: &Path,
        b: PutPayload,
        _: object_store::PutOptions,
    ) -> Result<object_store::PutResult> {
        if self.1 == Answers::NoPut {
            std::future::pending::<()>().await;
        }
        self.0.put(p, b).await
    }
    async fn put_multipart_opts(
        &self,
        p: &Path,
        o: object_store::PutMultipartOptions,
    ) -> Result<Box<dyn object_store::MultipartUpload>> {
        self.0.put_multipart_opts(p, o).await
    }
    async fn get_opts(&self, p: &Path, o: object_store::GetOptions) -> Result<object_store::GetResult> {
        self.0.get_opts(p, o).await
    }
    fn delete_stream(
        &self,
        l: futures::stream::BoxStream<'static, Result<Path>>,
    ) -> futures::stream::BoxStream<'static, Result<Path>> {
        self.0.delete_stream(l)
    }
    fn list(
        &self,
        p: Option<&Path>,
    ) -> futures::stream::BoxStream<'static, Result<object_store::ObjectMeta>> {
        self.0.list(p)
    }
    async fn list_with_delimiter(&self, p: Option<&Path>) -> Result<object_store::ListResult> {
        self.0.list_with_delimiter(p).await
    }
    async fn copy_opts(&self, a: &Path, b: &Path, o: object_store::CopyOptions) -> Result<()> {
        self.0.copy_opts(a, b, o).await
    }
}

#[test]
fn a_store_that_overwrites_is_refused() {
    let s =
        PartStore::from_store(Arc::new(Careless(InMemory::new(), Answers::Puts)), "careless://x").unwrap();
    let e = s.probe().unwrap_err();
    assert!(!e.is_retry() && e.to_string().contains("careless://x/_sentistream/probe/"), "{e}");
    assert!(e.to_string().contains("If-None-Match"), "{e}");
}

#[test]
fn a_store_that_hangs_is_waited_for_until_the_deadline_only() {
    let s = PartStore::from_store(Arc::new(Careless(InMemory::new(), Answers::NoPut)), "hung://x").unwrap();
    let start = Instant::now();
    s.end_by(Some(start + Duration::from_millis(50)));
    for _ in 0..3 {
        let e = s.put(&id(0), rollup_part(3, 0, 10)).unwrap_err();
        assert!(e.is_retry() && e.to_string().contains("no answer within"), "{e}");
    }
    assert!(start.elapsed() < Duration::from_secs(10), "not the 30 s of one operation");
}

#[test]
fn bad_urls_and_options_are_named() {
    for (url, want) in
        [("file:", "names no folder"), ("ftp://x/y", "expected file:"), ("data", "expected file:")]
    {
        let e = PartStore::open(&at(url)).err().unwrap().to_string();
        assert!(e.contains(want) && e.contains(&format!("'{url}'")), "{e}");
    }
    let c = config::Config::from_layers(
        None,
        vec![
            ("SENTISTREAM__STORE__URL".into(), "s3://bucket/pre".into()),
            ("SENTISTREAM__STORE__OPTIONS__AWS_REGOIN".into(), "x".into()),
        ],
    );
    let e = PartStore::open(&c.unwrap().store).err().unwrap().to_string();
    assert!(e.contains("aws_regoin"), "{e}");
}
