"""Chat templates as model authors publish them (shortened where they handle tools), each with a golden rendering."""

from dataclasses import dataclass

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = (("system", "Be brief."), ("user", " What is metformin? "), ("assistant", "A biguanide."), ("user", "Dose?"))


@dataclass(frozen=True)
class TemplateCase:
    """A row: source, whether it has a place for a system message, and MESSAGES rendered with a generation prompt."""

    source: str
    takes_system: bool
    golden: str


TEMPLATES: dict[str, TemplateCase] = {
    "llama-3": TemplateCase(  # meta-llama/Meta-Llama-3-8B-Instruct, tokenizer_config.json
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if "
        "loop.index0 == 0 %}"
        "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        True,
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe "
        "brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "What is metformin?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA biguanide.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nDose?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama-3.1": TemplateCase(  # meta-llama/Llama-3.1-8B-Instruct, without its handling of tools
        "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- set date_string = '26 Jul 2024' %}\n"
        "{%- endif %}\n"
        "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n"
        "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = '' %}\n{%- endif %}\n"
        "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}\n"
        "{{- 'Cutting Knowledge Date: December 2023\\n' }}\n{{- 'Today Date: ' + date_string + '\\n\\n' }}\n"
        "{{- system_message }}\n{{- '<|eot_id|>' }}\n{%- for message in messages %}\n"
        "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + "
        "'<|eot_id|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
        "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n",
        True,
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "What is metformin?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA biguanide.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nDose?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "chatml": TemplateCase(  # Qwen/Qwen1.5-7B-Chat and many fine-tunes
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
        "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}",
        True,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n What is metformin? <|im_end|>\n"
        "<|im_start|>assistant\nA biguanide.<|im_end|>\n<|im_start|>user\nDose?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "mistral": TemplateCase(  # mistralai/Mistral-7B-Instruct-v0.1: no system role, and it refuses one
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% else %}"
        "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
        False,
        "<s>[INST] Be brief.\n\n What is metformin?  [/INST]A biguanide.</s> [INST] Dose? [/INST]",
    ),
    "gemma": TemplateCase(  # google/gemma-2b-it
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
        "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
        False,
        "<s><start_of_turn>user\nBe brief.\n\n What is metformin?<end_of_turn>\n<start_of_turn>model\nA biguanide."
        "<end_of_turn>\n<start_of_turn>user\nDose?<end_of_turn>\n<start_of_turn>model\n",
    ),
    "llama-2": TemplateCase(  # meta-llama/Llama-2-7b-chat-hf, used by Med42 v1 and Meditron fine-tunes
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
        "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false "
        "%}{% endif %}"
        "{% for message in loop_messages %}{% if loop.index0 == 0 and system_message != false %}{% set content = "
        "'<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = "
        "message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
        "content.strip() + "
        "' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% "
        "endif %}"
        "{% endfor %}",
        True,
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n What is metformin? [/INST] A biguanide. </s><s>[INST] Dose? "
        "[/INST]",
    ),
    "phi-3": TemplateCase(  # microsoft/Phi-3-mini-4k-instruct
        "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
        "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
        "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        True,
        "<|system|>\nBe brief.<|end|>\n<|user|>\n What is metformin? <|end|>\n<|assistant|>\nA biguanide.<|end|>\n"
        "<|user|>\nDose?<|end|>\n<|assistant|>\n",
    ),
    "with a date, a namespace and a loop control": TemplateCase(
        "{%- set ns = namespace(n=0) -%}{{- 'Today: ' + strftime_now('%d %b %Y') + '\n' -}}{%- for m in messages -%}"
        "{%- if m.role == 'assistant' -%}{%- continue -%}{%- endif -%}{%- set ns.n = ns.n + 1 -%}"
        "{{- ns.n ~ m | tojson ~ '\n' -}}{%- endfor -%}{%- generation -%}>{%- endgeneration -%}",
        True,
        'Today: 06 Jul 2024\n1{"role": "system", "content": "Be brief."}\n'
        '2{"role": "user", "content": " What is metformin? "}\n3{"role": "user", "content": "Dose?"}\n>',
    ),
}
