//! The rows of the page: how programs write and read.
//!
//! The scripts find `$O` and `$I`, the stage's paths; `data`, which prints 64 KiB of lines; `put`, which writes them into the output
//! in the way that its class takes; and `no`, which fails with words.

/// A program as a row.
pub(crate) struct Way {
    /// What the row begins with.
    pub(crate) name: &'static str,
    /// The stage's name; `$O` and `$I` are its paths.
    pub(crate) stage: &'static str,
    pub(crate) writes: &'static str,
    pub(crate) reads: &'static str,
}

const fn way(name: &'static str, writes: &'static str, reads: &'static str) -> Way {
    Way { name, stage: "x", writes, reads }
}

const SAME: &str = "cat $I > /tmp/c; data | cmp - /tmp/c";
const NUMBERS: &str = "cat $I > /tmp/c; python3 -c 'import numpy; assert (numpy.fromfile(\"/tmp/c\", \"<u4\") == range(16384)).all()'";
const SORTED: &str = "cat $I > /tmp/c; data | sort -r | cmp - /tmp/c";

/// Ways to write an output.
pub(crate) const WRITES: &[Way] = &[
    way("`cat >`", "data | cat > $O", SAME),
    way("`>>`", "data >> $O", SAME),
    way("`>>`, twice", "data | head -c 1000 >> $O; data | tail -c +1001 >> $O", SAME),
    way("`tee`", "data | tee $O > /dev/null", SAME),
    way("`cp`", "data > /tmp/d; cp /tmp/d $O", SAME),
    way("`cp -p`", "data > /tmp/d; cp -p /tmp/d $O", SAME),
    way("`mv`, from another file system", "data > /tmp/d; mv /tmp/d $O", SAME),
    way("`install`", "data > /tmp/d; install /tmp/d $O", SAME),
    way("`touch` before", "touch $O; data > $O", SAME),
    way("`dd`", "data | dd of=$O status=none", SAME),
    way(
        "`dd seek= conv=notrunc`, the end first",
        "data > /tmp/d; for n in 1 0; do dd if=/tmp/d of=$O bs=32K count=1 skip=$n seek=$n conv=notrunc status=none; done",
        SAME,
    ),
    way("`truncate`, then `1<>`", "truncate -s 65536 $O; data 1<> $O", SAME),
    Way { name: "`split -b`", stage: "xaa", writes: "data | split -b 65536 - /stage/out/x", reads: SAME },
    way("`sort -o`", "data | sort -r -o $O", SORTED),
    way("`sort -o` onto its own input", "put; sort -r -o $O $O", SORTED),
    way("`sed -i`", "put; sed -i s/^0/1/ $O", "cat $I > /tmp/c; data | sed s/^0/1/ | cmp - /tmp/c"),
    way(
        "`tar -c`",
        "data | head -c 30000 > /tmp/d; tar -C /tmp -cf $O d",
        "data | head -c 30000 > /tmp/d; tar -xOf $I | cmp - /tmp/d",
    ),
    way("`tar -x`", "cd /tmp; data > x; tar -cf a x; tar -C /stage/out -xf a", SAME),
    way("`gzip -c >`", "data | gzip -c > $O", "data > /tmp/d; gzip -dc < $I | cmp - /tmp/d"),
    way(
        "`sqlite3`, a new database",
        "sqlite3 $O 'pragma page_size=4096; create table t(n); insert into t values (20), (22)'",
        "test \"$(sqlite3 -readonly $I 'select sum(n) from t')\" = 42",
    ),
    way(
        "`numpy.memmap`, mode `w+`",
        "python3 -c 'import numpy, sys; m = numpy.memmap(sys.argv[1], \"<u4\", \"w+\", shape=16384); m[:] = range(16384); m.flush()' $O",
        NUMBERS,
    ),
    way(
        "`numpy.memmap`, mode `r+`",
        "python3 -c 'import numpy, sys; open(sys.argv[1], \"r+b\").truncate(65536); m = numpy.memmap(sys.argv[1], \"<u4\", \"r+\"); m[:] = range(16384); m.flush()' $O",
        NUMBERS,
    ),
    way(
        "`gcc -o`",
        "echo '#include <stdio.h>\nint main(void) { return puts(\"built\") < 0; }' > /tmp/a.c; gcc -o $O /tmp/a.c",
        "cp $I /tmp/r; chmod 755 /tmp/r; mkdir /work/b; cp /tmp/r /work/b/r; test \"$(/work/b/r)\" = built",
    ),
    Way {
        name: "`gcc -c -o`",
        stage: "x.o",
        writes: "echo 'int f(void) { return 42; }' > /tmp/f.c; gcc -c -o $O /tmp/f.c",
        reads: "cd /work; cat $I > f.o; echo 'int f(void); int main(void) { return f(); }' > a.c; gcc -o a a.c f.o; ./a || test $? = 42",
    },
    way("temporary file beside, then rename", "data > $O.tmp; mv $O.tmp $O", SAME),
    way(
        "all inherited descriptors closed",
        "data > /tmp/d; python3 -c 'import os, sys; os.closerange(0, 65536); o = os.open(sys.argv[1], os.O_WRONLY); os.write(o, open(\"/tmp/d\", \"rb\").read())' $O",
        SAME,
    ),
    way(
        "`O_EXCL`",
        "data > /tmp/d; python3 -c 'import sys; open(sys.argv[1], \"xb\").write(open(\"/tmp/d\", \"rb\").read())' $O",
        SAME,
    ),
    way("removed, then made anew", "rm $O; data > $O", SAME),
];

const DATA: &str = "data > /tmp/d";

/// Ways to read an input: `writes` makes /tmp/d, which then comes to the reader in the surest way of its class.
pub(crate) const READS: &[Way] = &[
    way("`cat <`", DATA, SAME),
    way("`cp`", DATA, "cp $I /tmp/c; data | cmp - /tmp/c"),
    way("`cp -p`", DATA, "cp -p $I /tmp/c; data | cmp - /tmp/c"),
    way("`tail -c`", DATA, "test $(tail -c 8 $I) = 0008192"),
    way("`dd skip=`, the middle", DATA, "test $(dd if=$I bs=8 skip=4095 count=1 status=none) = 0004096"),
    way("read twice", DATA, "data | cmp - $I; data | cmp - $I"),
    way("`sort`", DATA, "sort -r $I > /tmp/c; data | sort -r | cmp - /tmp/c"),
    way(
        "`tar -x`",
        "data | head -c 30000 > /tmp/m; tar -C /tmp -cf /tmp/d m",
        "data | head -c 30000 > /tmp/d; tar -C /tmp -xf $I; cmp /tmp/m /tmp/d",
    ),
    way(
        "`gzip -dc <`",
        "data | gzip -c > /tmp/d",
        "data > /tmp/d; gzip -dc < $I > /tmp/c; cmp /tmp/c /tmp/d",
    ),
    way(
        "`sqlite3 -readonly`",
        "sqlite3 /tmp/d 'pragma page_size=4096; create table t(n); insert into t values (20), (22)'",
        "test \"$(sqlite3 -readonly $I 'select sum(n) from t')\" = 42",
    ),
    way(
        "`numpy.memmap`, mode `r`",
        DATA,
        "python3 -c 'import numpy, sys; m = numpy.memmap(sys.argv[1], \"u1\", \"r\"); assert m[:65536].sum() == 2973764, m[:65536].sum()' $I",
    ),
    Way {
        name: "`gcc`, linked in",
        stage: "x.o",
        writes: "echo 'int f(void) { return 42; }' > /tmp/f.c; gcc -c -o /tmp/d /tmp/f.c",
        reads: "cd /work; echo 'int f(void); int main(void) { return f(); }' > a.c; gcc -o a a.c $I; ./a || test $? = 42",
    },
    way("executed", "cp /bin/true /tmp/d", "$I"),
    way("executed by its loader", "cp /bin/true /tmp/d", "ld.so $I"),
    way(
        "all inherited descriptors closed",
        DATA,
        "data > /tmp/d; python3 -c 'import os, sys; os.closerange(0, 65536); b = open(sys.argv[1], \"rb\").read(); open(\"/tmp/c\", \"wb\").write(b)' $I; cmp /tmp/c /tmp/d",
    ),
    way(
        "`ls -L`, its size",
        DATA,
        "test \"$(ls /stage/in | grep -v ^go$)\" = x; set -- $(ls -lL $I); test $5 = 65536 || no",
    ),
    way("`find -L -type f`", DATA, "test \"$(find -L /stage/in -type f)\" = $I || no"),
    way("`realpath`, then `cat`", DATA, "cat $(realpath -e $I) > /tmp/c; data | cmp - /tmp/c"),
];
