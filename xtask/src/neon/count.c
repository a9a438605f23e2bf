/* A plugin of QEMU's user-mode emulation: counts the instructions that a program executes, and those that multiply bytes. */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct block;
struct instruction;

/* Of qemu-plugin.h, version 1 of the interface, which Debian does not ship. */
int qemu_plugin_version = 1;
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*call)(uint64_t, struct block *));
void qemu_plugin_register_atexit_cb(uint64_t id, void (*call)(uint64_t, void *), void *data);
void qemu_plugin_register_vcpu_insn_exec_inline(struct instruction *, int add, void *counter, uint64_t amount);
size_t qemu_plugin_tb_n_insns(const struct block *);
struct instruction *qemu_plugin_tb_get_insn(const struct block *, size_t);
const void *qemu_plugin_insn_data(const struct instruction *);

static uint64_t all, products;

/* sdot of registers, sdot by element, smmla. */
static int multiplies(uint32_t word) {
    return (word & 0xffe0fc00) == 0x4e809400 || (word & 0xffc0f400) == 0x4f80e000 || (word & 0xffe0fc00) == 0x4e80a400;
}

static void translated(uint64_t id, struct block *block) {
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct instruction *instruction = qemu_plugin_tb_get_insn(block, i);
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(instruction), sizeof word);
        qemu_plugin_register_vcpu_insn_exec_inline(instruction, 0, &all, 1);
        if (multiplies(word)) {
            qemu_plugin_register_vcpu_insn_exec_inline(instruction, 0, &products, 1);
        }
    }
}

static void ended(uint64_t id, void *data) {
    (void)id, (void)data;
    printf("%" PRIu64 " %" PRIu64 "\n", all, products);
    fflush(stdout);
}

int qemu_plugin_install(uint64_t id, const void *info, int count, char **arguments) {
    (void)info, (void)count, (void)arguments;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
