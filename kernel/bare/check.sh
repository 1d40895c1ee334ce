#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# check.sh <image> <variant> [<atomic_ist.o>]: what can be seen in the built code without
# running it.
#
# Of the text of each vector up to its commit: no CALL, RET, IRET or indirect branch; no
# string instruction; every operand is an immediate, a general register, or memory by a
# general register, so there is no data at a fixed address and no segment base; the last
# instruction is the commit. Variants 2 and 3 call their copy there, once, and return from it, once,
# by the RET that they untrain; rfc-v1 calls and returns as it likes, for others to find. Variant 3
# has the accesses to CR3, GSBASE and MSRs, and to the data that they need. Of the C object: text of the vectors and nothing else, no
# symbol of which is data or a function of a library. Of the image: text and a note.

set -eu
image=$1
variant=$2
object=${3-}
: "${NM:=nm}" "${OBJDUMP:=objdump}"

die()
{
	echo "check.sh: $*" >&2
	exit 1
}

address()
{
	$NM "$image" | awk -v name="$1" '$3 == name { print "0x" $1; exit }' | grep . ||
		die "no symbol $1"
}

for v in nmi db mc vc; do
	start=$(address "__atomic_ist_${v}_text")
	end=$(address "atomic_ist_committed_$v")
	$OBJDUMP -d --no-show-raw-insn --start-address="$start" --stop-address="$end" "$image" |
	awk -F '\t' -v v="$v" -v variant="$variant" '
		BEGIN {
			called = variant == "2" || variant == "3" || variant == "rfc-v1"
			msrs = variant == "2" || variant == "3"
			arithmetic = "^(add|sub|and|or|xor|cmp|test|inc|dec|neg|not|imul|sh[lr]|sa[lr])[bwlq]?$"
			moves = "^(mov|movabs|movz[a-z]+|lea|push|pop|set[a-z]+|cmov[a-z]+|clac|cld)[bwlq]?$"
		}
		function bad(why) {
			print "check.sh: " v ": " why ": " $0 > "/dev/stderr"
			failed = 1
		}
		!/^ *[0-9a-f]+:\t/ { next }
		{
			last = $2
			count++
			line = $2
			sub(/ *(#|<).*/, "", line)
			mnemonic = line
			sub(/ .*/, "", mnemonic)
			operands = substr(line, length(mnemonic) + 1)
		}
		mnemonic ~ /^(nop|xchg|int3|data16|cs)/ { next }	# padding
		mnemonic ~ /^j/ {
			if (operands !~ /^ +(0x)?[0-9a-f]+$/)
				bad("indirect branch")
			next
		}
		mnemonic == "call" && called && $2 ~ "<atomic_ist_copy_" v ">" { calls++; next }
		mnemonic == "ret" && called { rets++; next }
		mnemonic == ".byte" && operands ~ /^ +0xf6$/ && msrs { next }	# with the RET: TEST
		mnemonic ~ /^(rdmsr|wrmsr|lfence)$/ && msrs { next }
		mnemonic ~ /^(rdgsbase|wrgsbase|lsl|bts)$/ && variant == "3" { next }
		mnemonic !~ arithmetic && mnemonic !~ moves {
			bad("not allowed before the commit")
			next
		}
		{
			if (mnemonic == "lea")		# computes, reads nothing
				gsub(/0x0\(,%r[a-z0-9]+,[248]\)/, "", operands)
			if (variant == "3") {
				gsub(/%cr3/, "", operands)
				gsub(/%gs:0x[0-9a-f]+/, "", operands)		# x86_spec_ctrl_current
				gsub(/-0x7e000000\(,%r[a-z0-9]+,8\)/, "", operands)	# __per_cpu_offset
			}
			gsub(/(-?0x[0-9a-f]+)?\(%r([abcd]x|[sd]i|[bs]p|[89]|1[0-5])(,%r[a-z0-9]+,[1248])?\)/, "", operands)
			gsub(/\$-?0x[0-9a-f]+/, "", operands)
			gsub(/%(r[89]|r1[0-5])[dwb]?|%[abcd][lh]|%[er]?([abcd]x|[sd]i|[bs]p)|%([sd]i|[bs]p)l/, "", operands)
			if (operands !~ /^[ ,]*$/)
				bad("operand not allowed before the commit: " operands)
		}
		END {
			$0 = last
			if (!count)
				bad("nothing there")
			if (last !~ /^mov +%rax,%rsp *$/)
				bad("not the commit at the end")
			if (called && (calls != 1 || (rets != 1 && variant != "rfc-v1")))
				bad(calls + 0 " calls and " rets + 0 " returns")
			exit failed
		}' || die "$image: the text of $v breaks the rules above"
done

# All is assembler in variant 1a.
[ -z "$object" ] || $OBJDUMP -h "$object" | awk '
	$1 ~ /^[0-9]+$/ && $3 !~ /^0+$/ &&
	$2 !~ /^\.entry\.text\.atomic_ist\.((nmi|db|mc|vc)\.c|exit)$/ &&
	$2 !~ /^\.(debug_|comment|note\.|llvm_addrsig)/ {
		print "check.sh: section " $2 > "/dev/stderr"
		failed = 1
	}
	END { exit failed }' || die "$object: more than the text of the vectors"

[ -z "$object" ] || $NM -u "$object" | awk -v variant="$variant" '
	variant == "3" && $2 ~ /^(__per_cpu_offset|x86_spec_ctrl_current|user_pcid_flush_mask|cpu_tss_sp0)$/ { next }
	variant ~ /^(1b|2|3)$/ && $2 == "__x86_return_thunk" { next }
	$2 !~ /^(__)?atomic_ist_/ && $2 !~ /^entry_SYS(CALL_64|RETQ)/ {
		print "check.sh: refers to " $2 > "/dev/stderr"
		failed = 1
	}
	END { exit failed }' || die "$object: symbols that are no labels of entry text"

$OBJDUMP -h "$image" | awk '
	$1 ~ /^[0-9]+$/ {
		name = $2
		getline
		if (/ALLOC/ && name !~ /^(\.entry\.text|\.text|\.note\.gnu\.build-id)$/) {
			print "check.sh: section " name > "/dev/stderr"
			failed = 1
		}
	}
	END { exit failed }' || die "$image: more than text and a note"
