"""The texts and the conversations on which two tokenizers must agree: medicine, ten scripts, and the awkward cases.

Everything is in Unicode's composed form (NFC): llama.cpp does not normalise, and tokenizers that do would differ on
purpose. Written for this project.
"""

# fmt: off
TEXTS: tuple[str, ...] = (
    "A 67-year-old man presents with crushing substernal chest pain radiating to the left arm for 45 minutes.",
    "BP 168/94 mmHg, HR 112/min, SpO2 91 % on room air, T 38.6 °C; lactate 4.2 mmol/L, CRP 187 mg/L.",
    "Metformin 500 mg b.i.d., atorvastatin 40mg qHS, enoxaparin 1 mg/kg s.c. q12h; amoxicillin-clavulanate 875/125.",
    "HbA1c ≥ 6.5 % (48 mmol/mol) → type 2 diabetes; eGFR ≤ 30 mL/min/1.73 m² ± 5; dose 0.5–1.0 µg/kg × 3.",
    "Pneumonoultramicroscopicsilicovolcanoconiosis, electroencephalographically, 5-hydroxytryptophan, β-lactamase.",
    "Question: Which of the following is the most likely diagnosis?\nA. Myocarditis\nB. Pericarditis\nC. STEMI\n"
    "D. Aortic dissection\nAnswer:",
    "Answer: B", " B", "B", "(B)", "Answer:B\n\n", "\n\nThe correct answer is (C).",
    "don't DON'T Don't I've WE'LL they're She'd it's IT'S o'clock 'tis ’tis don’t l'hôpital",
    "1 12 123 1234 12345 123456 1,234,567.89 3.14159 0x1F 1e-5 2024-03-01 12:30 50% #1 $5 €20 №7 ½ ² ₃",
    "  two spaces   three\ttab\t\ttabs \n newline\n\ntwo\n\n\nthree \r\n crlf\r\n\r\nend   ",
    "    indented\n        more\n\t- list\n\t\t- nested",
    "if (x <= 10 && y != 0) { return a[i]->b::c; } // comment\n#include <stdio.h>\n{\"id\": [1, 2, {\"k\": null}]}",
    "https://example.org/path?q=1&r=two#frag user.name+tag@example.org C:\\Users\\x /usr/local/bin --flag=value",
    "Die Patientin klagt über Übelkeit, Schwindel und Kopfschmerzen; Verdacht auf Gehirnerschütterung. Größe: 1,72 m.",
    "Le médecin prescrit du paracétamol à l'enfant fiévreux ; l'œdème s'aggrave. Ça va ? Noël, cœur, naïveté.",
    "El niño tiene fiebre y tos; ¿alergias? ¡Ninguna! A criança está com dor de cabeça e não dormiu.",
    "Пациент жалуется на одышку и боль в груди; давление 140/90 мм рт. ст. Діагноз: пневмонія.",
    "Ο ασθενής έχει υψηλή αρτηριακή πίεση· χορηγήθηκε ασπιρίνη.",
    "患者は三日前から発熱と咳が続いています。アレルギーはありますか？血圧は１２０／８０でした。",
    "患者三天前开始发热、咳嗽，既往有高血压病史。血糖为7.8毫摩尔/升。",
    "환자는 두통과 어지러움을 호소합니다. 혈압약을 복용 중입니다.",
    "المريض يعاني من ألم في الصدر وضيق في التنفس. ضغط الدم ١٢٠/٨٠.",
    "לחולה יש כאבי בטן ובחילות מאז אתמול.",
    "रोगी को बुखार और खांसी है; रक्तचाप सामान्य है।",
    "ผู้ป่วยมีไข้และไอ ปวดศีรษะมาก",
    "Bệnh nhân bị sốt cao và đau họng từ hôm qua.",
    "Hasta şiddetli baş ağrısından şikâyet ediyor; İstanbul'da ışık.",
    "😀 👩‍⚕️ 🧑🏽‍🔬 🩺💉 ❤️ ☠ ✓ ★ →⇒ ∞ ∑ ∂ α β γ ℃ … “quoted” ‘single’ «guillemets» — – ·",
    "zero\u200bwidth no\u00a0break\u2009thin ideographic\u3000space soft\u00adhyphen \ufeffmark",
    "", " ", "\n", "a", "ß", "的", "🩺",
)

CONVERSATIONS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Which drug class does metformin belong to?"),),
    (("user", "A patient has fever, cough and\n  a rash.\n\nWhat next?  "), ("assistant", "Ask about travel."),
     ("user", "  Recently in 东京.\n")),
    (("system", "You are a careful medical assistant."), ("user", "What is a normal SpO2?")),
)
# fmt: on


def excerpt(text: str) -> str:
    """`text` as a message shows it."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
