/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A guest that does nothing but stand still: long mode, Linux's selectors, a TSS with IST stacks, a gate for
 * every vector, NMIs through LINT1 and machine checks switched on. All else, the test does from outside.
 *
 * Booted by QEMU as a PVH image (32-bit protected mode, paging off). Memory is mapped one to one, for user mode
 * too. Every label is known to the test.
 */
	.section .note.pvh, "a", @note
	.long	4, 8, 18			/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.quad	boot32

	.section .text
	.code32
	.globl	boot32
boot32:
	cli
	movl	$pdpt + 7, pml4
	movl	$pd + 7, pdpt
	movl	$pd + 0x1000 + 7, pdpt + 8
	movl	$pd + 0x2000 + 7, pdpt + 16
	movl	$pd + 0x3000 + 7, pdpt + 24
	movl	$0x87, %eax			/* present, writable, user, 2 MiB */
	xorl	%ecx, %ecx
1:	movl	%eax, pd(, %ecx, 8)
	movl	$0, pd + 4(, %ecx, 8)
	addl	$0x200000, %eax
	incl	%ecx
	cmpl	$2048, %ecx
	jne	1b
	movl	$0x10260, %eax			/* FSGSBASE, OSFXSR, MCE, PAE */
	movl	%eax, %cr4
	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx
	movl	$0x901, %eax			/* NXE, LME, SCE */
	xorl	%edx, %edx
	wrmsr
	movl	$0x80050033, %eax		/* PG, AM, WP, NE, ET, MP, PE */
	movl	%eax, %cr0
	lgdt	gdt_pointer
	ljmp	$0x10, $start64

	.code64
start64:
	movl	$0x18, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	movq	$task_stack_top, %rsp
	/* the TSS: RSP0, IST1 to IST4; its descriptor's base */
	movq	$rsp0_stack_top, %rax
	movq	%rax, tss + 4
	movq	$nmi_stack_top, %rax
	movq	%rax, tss + 36
	movq	$db_stack_top, %rax
	movq	%rax, tss + 44
	movq	$mc_stack_top, %rax
	movq	%rax, tss + 52
	movq	$df_stack_top, %rax
	movq	%rax, tss + 60
	movl	$tss, %eax
	movw	%ax, gdt + 0x42
	shrl	$16, %eax
	movb	%al, gdt + 0x44
	movb	%ah, gdt + 0x47
	movl	$0x40, %eax
	ltr	%ax
	/* a present interrupt gate for every vector, without IST */
	movq	$stubs, %rax
	movq	$idt, %rdi
	movl	$256, %ecx
1:	movw	%ax, (%rdi)
	movw	$0x10, 2(%rdi)
	movw	$0x8e00, 4(%rdi)
	movl	%eax, %edx
	shrl	$16, %edx
	movw	%dx, 6(%rdi)
	movq	$0, 8(%rdi)
	addq	$16, %rax
	addq	$16, %rdi
	decl	%ecx
	jnz	1b
	lidt	idt_pointer
	/* no interrupts but NMIs: both PICs masked, the local APIC on, LINT1 set to NMI */
	movb	$0xff, %al
	outb	%al, $0x21
	outb	%al, $0xa1
	movl	$0xfee00000, %edi
	movl	$0x1ff, 0xf0(%rdi)
	movl	$0x10000, 0x350(%rdi)
	movl	$0x400, 0x360(%rdi)
	.globl	ready
ready:
	pause
	jmp	ready

	/* What the test runs: one IRET, to any context; and small pieces of code for that context. */
	.balign 64
	.globl	go, program, shadow, shadow_end, read_msr, write_msr
go:	iretq
	nop
	.balign 64
program:
	nop
	pushq	%rbx
	movq	%rcx, %rdx
	addq	$0x11, %rdx
	popq	%rsi
	xorl	%edi, %edi
	nop
	jmp	program
	.balign 64
shadow:
	movl	%eax, %ss
	nop
shadow_end:
	nop
	nop
	.balign 64
read_msr:
	rdmsr
	nop
	.balign 64
write_msr:
	wrmsr
	nop

	.balign 4096
	.globl	stubs
stubs:
	vector = 0
	.rept	256
	.balign 16
	nop
	.if	(vector == 8) | ((vector >= 10) & (vector <= 14)) | (vector == 17) | (vector == 29) | (vector == 30)
	addq	$8, %rsp
	.endif
	pushq	%rax
	popq	%rax
	iretq
	vector = vector + 1
	.endr

	.section .data
	.balign 4096
	.globl	gdt, idt, tss
gdt:	/* arch/x86/include/asm/segment.h: 0x10 kernel code, 0x18 data, 0x23 user code 32, 0x2b data, 0x33 code, 0x40 TSS */
	.quad	0, 0
	.quad	0x00af9b000000ffff, 0x00cf93000000ffff
	.quad	0x00cffb000000ffff, 0x00cff3000000ffff
	.quad	0x00affb000000ffff, 0
	.quad	0x0000890000000067, 0
gdt_pointer:
	.word	0x4f
	.quad	gdt
idt_pointer:
	.word	0xfff
	.quad	idt
	.balign 4096
tss:	.fill	104, 1, 0
	.balign 4096
idt:	.fill	4096, 1, 0

	.macro	stack name
	.balign 4096
	.globl	\name, \name\()_top
\name:	.fill	4096, 1, 0xee
\name\()_top:
	.endm
	stack	nmi_stack
	stack	db_stack
	stack	mc_stack
	stack	df_stack
	stack	rsp0_stack
	stack	task_stack
	stack	user_stack
	stack	frames
	.globl	data_end
data_end:

	.section .bss
	.balign 4096
pml4:	.skip	4096
pdpt:	.skip	4096
pd:	.skip	4 * 4096
