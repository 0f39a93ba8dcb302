/* The smallest program: its only work is exit(0). Built without a C library (-nostdlib), so that nothing runs before it. */
__attribute__((noreturn)) void _start(void) {
    for (;;) __asm__ volatile("syscall" : : "a"(60), "D"(0) : "rcx", "r11", "memory");
}
